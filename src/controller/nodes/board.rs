//! What a controller's list of nodes said last, for all who wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::controller::jenkins::{JenkinsError, Node};
use crate::controller::nodes::bundle::JarShelf;

/// A list of nodes.
#[derive(Debug)]
pub struct Look {
    /// When it was asked for.
    pub began: Instant,
    /// The nodes, by name.
    pub nodes: HashMap<String, Node>,
}

#[derive(Debug, Clone, Default)]
struct Told {
    look: Option<Arc<Look>>,
    problem: Option<String>,
}

#[derive(Default)]
pub(super) struct Board {
    told: watch::Sender<Told>,
    waiting: Arc<AtomicUsize>,
    poked: Arc<Notify>,
    pub(super) jar: JarShelf,
}

/// Who waits for lists.
#[derive(Default)]
pub struct Waiting {
    told: Option<watch::Receiver<Told>>,
    count: Arc<AtomicUsize>,
}

impl Board {
    pub(super) fn look(&self) -> Option<Arc<Look>> {
        self.told.borrow().look.clone()
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.told.borrow().problem.clone()
    }

    pub(super) fn tell(&self, began: Instant, listed: Result<Vec<Node>, JenkinsError>) -> Result<Arc<Look>, JenkinsError> {
        let told = match listed {
            Ok(nodes) => {
                let nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
                Ok(Arc::new(Look { began, nodes }))
            }
            Err(error) => Err(error),
        };
        self.told.send_modify(|seen| match &told {
            Ok(look) => *seen = Told { look: Some(Arc::clone(look)), problem: None },
            // What was said before may be so no longer, and nothing else is known.
            Err(error) => seen.problem = Some(error.to_string()),
        });
        told
    }

    pub(super) fn wait(&self) -> Waiting {
        if self.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            self.poke();
        }
        Waiting { told: Some(self.told.subscribe()), count: Arc::clone(&self.waiting) }
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    pub(super) fn poke(&self) {
        self.poked.notify_one();
    }

    pub(super) async fn poked(&self) {
        self.poked.notified().await;
    }
}

impl Waiting {
    /// Waits until the controller was asked once more, and answers what it said, or why it said nothing.
    pub async fn next(&mut self) -> Result<Arc<Look>, String> {
        let Some(told) = &mut self.told else { return std::future::pending().await };
        if told.changed().await.is_err() {
            return std::future::pending().await;
        }
        let told = told.borrow_and_update().clone();
        match (told.problem, told.look) {
            (None, Some(look)) => Ok(look),
            (problem, _) => Err(problem.unwrap_or_default()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.told.is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
