//! Waiting until a controller says that a node is online.

use std::time::{Duration, Instant};

use crate::controller::Controller;
use crate::controller::jenkins::Node;
use crate::controller::nodes::{Kept, is_our_mark};
use crate::limits::{NODE_ONLINE_MAX, NODE_SETTLE, NODES_PAUSE};
use crate::link::frames::Launched;
use crate::provision::launch::{Launcher, Unlaunched};

impl Launcher<'_> {
    /// Waits until the controller says that the node is online; the time in which it says nothing does not count.
    pub(super) async fn online(&self, controller: &Controller, kept: &Kept) -> Result<String, Unlaunched> {
        let name = &controller.name;
        let told = format!("node `{}` at controller `{name}`", kept.name);
        let launched = Instant::now();
        let mut waiting = self.provision.nodes.wait(name);
        self.tell(format!("launched; waiting until controller `{name}` says that node `{}` is online", kept.name)).await?;
        let (mut waited, mut last, mut says) = (Duration::ZERO, Instant::now(), "nothing yet".to_owned());
        loop {
            let looked = self.while_wanted(tokio::time::timeout(NODES_PAUSE * 4, waiting.next())).await?;
            let since = last.elapsed();
            last = Instant::now();
            match looked {
                // What is older may tell of the program that ran before.
                Ok(Ok(look)) if look.began < launched + NODE_SETTLE => waited += since,
                Ok(Ok(look)) => {
                    waited += since;
                    match look.nodes.get(kept.name.as_str()) {
                        Some(node) if !node.is_offline => return Ok(format!("provisioned, and {told} is online")),
                        Some(node) if is_theirs(node) => {
                            return Ok(format!("provisioned and launched; {told} is marked offline there: {}", node.reason));
                        }
                        Some(node) if node.reason.is_empty() => says = "it is offline".into(),
                        Some(node) => says = format!("it is offline: {}", node.reason),
                        None => says = "there is no such node".into(),
                    }
                }
                Ok(Err(problem)) => {
                    self.tell(format!("launched; waiting for {told}, which is not known: {problem}")).await?;
                }
                Err(_) => {}
            }
            if waited > NODE_ONLINE_MAX {
                let program = ended(self.agent.view().launched.as_ref());
                return Err(Unlaunched::Failed(format!(
                    "{told} is not online {} s after it was launched. The controller says: {says}. {program}",
                    NODE_ONLINE_MAX.as_secs()
                )));
            }
        }
    }
}

/// Whether somebody else has taken a node out: that is theirs to undo.
fn is_theirs(node: &Node) -> bool {
    node.is_marked && !is_our_mark(&node.reason)
}

fn ended(launched: Option<&Launched>) -> String {
    match launched {
        None => "How its program is, is not known".into(),
        Some(Launched::Nothing) => "Its program is not running".into(),
        Some(Launched::Running { restarts: 0, .. }) => "Its program runs".into(),
        Some(Launched::Running { restarts, .. }) => {
            format!("Its program was started again {restarts} times; `.muster/launched.log` in the agent's root has why")
        }
        Some(Launched::Exited { status, restarts, .. }) => {
            format!(
                "Its program ended with status {status}, started again {restarts} times; `.muster/launched.log` in the agent's root has why"
            )
        }
    }
}
