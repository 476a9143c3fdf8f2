//! The nodes that agents have at their controllers, as Muster keeps them: which are its own, how they are to be, and what their controllers
//! say of them.
//!
//! A node's row is in the store before the node is asked for, and until it is known to be gone; and what it is for stands in its description,
//! in words that only this server writes. So a crash at any moment leaves nothing of which nobody knows whose it is, and nothing is touched
//! that is somebody else's. One list for all who wait is read by `reconcile`; who waits for a node looks at what it found.

mod board;
mod bundle;
mod marker;
mod node;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::board::{Look, Waiting};
pub use self::bundle::AgentBundle;
pub use self::marker::is_ours as is_our_mark;
pub use self::node::{Closed, Door, Kept};
use crate::controller::jenkins::{JenkinsError, Node, NodeName, NodeNameError};
use crate::controller::nodes::board::Board;
use crate::controller::nodes::marker::Marker;
use crate::controller::{Controller, Controllers};
use crate::limits::AGENT_EXECUTORS_MAX;
use crate::names::{AgentName, ControllerName, LabelName};
use crate::store::nodes::NodePlan;
use crate::store::segments::Segments;
use crate::store::{Store, StoreError};

/// All nodes that are Muster's.
pub struct Nodes {
    store: Store,
    segments: Segments,
    controllers: Arc<Controllers>,
    marker: Marker,
    /// By their agents' ids: one of each, and those that are to go.
    kept: Mutex<HashMap<String, Vec<Arc<Kept>>>>,
    boards: BTreeMap<ControllerName, Board>,
}

/// What an agent is to be at a controller.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The agent's id.
    pub agent_id: String,
    /// The agent's name.
    pub agent: AgentName,
    /// The label whose release says so.
    pub label: LabelName,
    /// How the node is set up.
    pub plan: NodePlan,
}

/// Why a node is not as it is to be.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The controller did not do it.
    #[error(transparent)]
    Controller(#[from] JenkinsError),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// There is one of this name that is somebody else's.
    #[error(
        "there is a node `{0}` already, which is not Muster's: remove it there, give the agent another name, or leave `launch.node_name` at \
        `unguessable`"
    )]
    Foreign(NodeName),
    /// It can not be named.
    #[error("{0}; another name for the agent, or a name_prefix in the controller's section, makes one that can be")]
    Name(#[from] NodeNameError),
    /// It can not have so many executors.
    #[error("a node has 1 to {AGENT_EXECUTORS_MAX} executors, the agent says {0}")]
    Executors(u32),
    /// Its controller is not in the configuration.
    #[error("there is no controller `{0}` in the server's configuration any more")]
    Unknown(ControllerName),
    /// The controller's `agent.jar` can not be used.
    #[error("the agent.jar of the controller {0}")]
    Jar(String),
}

impl NodeError {
    /// Whether it may pass by itself.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Controller(error) if error.is_passing()) || matches!(self, Self::Store(_))
    }
}

impl Nodes {
    /// Loads them. `server` is what tells this server's nodes from another's.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(store: Store, segments: Segments, controllers: Arc<Controllers>, server: &str) -> Result<Self, StoreError> {
        let mut kept: HashMap<String, Vec<Arc<Kept>>> = HashMap::new();
        for row in store.nodes().await? {
            let Some(controller) = controllers.get(&row.controller) else {
                tracing::warn!(controller = %row.controller, node = row.name, "node {} is at controller {}, which is not in the configuration: it stays there", row.name, row.controller);
                continue;
            };
            let Ok(name) = row.name.parse::<NodeName>() else { continue };
            kept.entry(row.agent_id.clone()).or_default().push(Arc::new(Kept::new(Arc::clone(controller), name, row)));
        }
        let boards = controllers.iter().map(|controller| (controller.name.clone(), Board::default())).collect();
        Ok(Self { store, segments, controllers, marker: Marker::new(server), kept: Mutex::new(kept), boards })
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Kept>>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A controller by its name.
    ///
    /// # Errors
    /// When it is not in the configuration.
    pub fn controller(&self, name: &ControllerName) -> Result<&Arc<Controller>, NodeError> {
        self.controllers.get(name).ok_or_else(|| NodeError::Unknown(name.clone()))
    }

    /// The nodes of one controller.
    pub fn at(&self, controller: &ControllerName) -> Vec<Arc<Kept>> {
        self.kept().values().flatten().filter(|kept| kept.controller.name == *controller).cloned().collect()
    }

    /// All nodes of an agent: one, and those that are to go.
    pub fn of(&self, agent_id: &str) -> Vec<Arc<Kept>> {
        self.kept().get(agent_id).cloned().unwrap_or_default()
    }

    /// The node that an agent has now.
    pub fn current(&self, agent_id: &str) -> Option<Arc<Kept>> {
        self.of(agent_id).into_iter().find(|kept| kept.row().leaving_us.is_none())
    }

    /// Whether any node is kept, at a controller.
    pub fn has_any(&self, controller: &ControllerName) -> bool {
        self.kept().values().flatten().any(|kept| kept.controller.name == *controller)
    }

    /// Whether a node that a controller showed is the one that is kept.
    pub fn owns(&self, kept: &Kept, node: &Node) -> bool {
        let row = kept.row();
        // Nobody else comes upon a name that can not be guessed.
        let is_alone = row.made_us.is_some() && !row.plan.is_plain;
        node.name == row.name && (is_alone || self.marker.of(&node.description).is_some())
    }

    /// Whose agent's a node is that no row tells of, if it is this server's.
    pub fn orphan<'a>(&self, controller: &Controller, node: &'a Node) -> Option<&'a str> {
        let agent_id = self.marker.of(&node.description)?;
        let is_kept = self.kept().values().flatten().any(|kept| kept.controller.name == controller.name && kept.name.as_str() == node.name);
        (node.name.starts_with(&controller.name_prefix) && !is_kept).then_some(agent_id)
    }

    // What controllers say.

    /// What a controller said last; none before its first answer.
    pub fn look_at(&self, controller: &ControllerName) -> Option<Arc<Look>> {
        self.boards.get(controller).and_then(Board::look)
    }

    /// Why a controller did not answer the last time, if it did not.
    pub fn problem(&self, controller: &ControllerName) -> Option<String> {
        self.boards.get(controller).and_then(Board::problem)
    }

    /// Waits for what a controller says, for as long as this is held: meanwhile it is asked more often.
    pub fn wait(&self, controller: &ControllerName) -> Waiting {
        self.boards.get(controller).map(Board::wait).unwrap_or_default()
    }

    /// Has a controller's nodes looked at soon.
    pub fn poke(&self, controller: &ControllerName) {
        if let Some(board) = self.boards.get(controller) {
            board.poke();
        }
    }

    /// Waits until they are to be looked at soon.
    pub async fn poked(&self, controller: &ControllerName) {
        match self.boards.get(controller) {
            Some(board) => board.poked().await,
            None => std::future::pending().await,
        }
    }

    /// Whether somebody waits for what a controller says.
    pub fn is_awaited(&self, controller: &ControllerName) -> bool {
        self.boards.get(controller).is_some_and(Board::is_awaited)
    }

    /// Lists a controller's nodes, and tells all who wait.
    ///
    /// # Errors
    /// As any call of the controller.
    pub async fn look(&self, controller: &Controller) -> Result<Arc<Look>, NodeError> {
        let board = self.boards.get(&controller.name).ok_or_else(|| NodeError::Unknown(controller.name.clone()))?;
        Ok(board.tell(std::time::Instant::now(), controller.jenkins.list().await)?)
    }

    // The program.

    /// What a controller has its agents run, as a bundle. It is fetched once a start of the controller, and kept by its content.
    ///
    /// # Errors
    /// When it can not be fetched, or is none that can be used.
    pub async fn agent_bundle(&self, controller: &Controller) -> Result<Arc<AgentBundle>, NodeError> {
        let board = self.boards.get(&controller.name).ok_or_else(|| NodeError::Unknown(controller.name.clone()))?;
        board.jar.get(controller, &self.segments).await
    }

    /// Closes a node's door to builds until what is answered is dropped. A door that somebody else closed stays theirs.
    ///
    /// # Errors
    /// When it can not be closed.
    pub async fn close(self: &Arc<Self>, kept: &Arc<Kept>, why: &str) -> Result<Closed, NodeError> {
        // Before its turn, so that whoever has just decided to open the door finds it held.
        let closed = kept.closing(Arc::clone(self));
        self.mark(kept, why).await?;
        Ok(closed)
    }

    /// Marks a node, unless it is marked by then: what somebody else said of it stays.
    ///
    /// # Errors
    /// When it can not be marked.
    pub async fn mark(&self, kept: &Kept, why: &str) -> Result<(), NodeError> {
        let _turn = kept.turn.lock().await;
        let Some(node) = self.node_of(kept).await? else { return Ok(()) };
        if !node.is_marked {
            match kept.controller.jenkins.set_offline(&kept.name, &marker::mark(why)).await {
                Ok(()) | Err(JenkinsError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        kept.see_door(if node.is_marked && !is_our_mark(&node.reason) { Door::Theirs } else { Door::Ours });
        kept.touch();
        Ok(())
    }

    /// Takes Muster's own mark away, unless somebody holds the door closed.
    ///
    /// # Errors
    /// When it can not be taken away.
    pub async fn unmark(&self, kept: &Kept) -> Result<(), NodeError> {
        let _turn = kept.turn.lock().await;
        if kept.is_closed() {
            return Ok(());
        }
        // Somebody may have made the mark theirs since the list.
        if !self.node_of(kept).await?.is_some_and(|node| node.is_marked && is_our_mark(&node.reason)) {
            return Ok(());
        }
        match kept.controller.jenkins.set_online(&kept.name).await {
            Ok(_) | Err(JenkinsError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
        kept.see_door(Door::Open);
        kept.touch();
        Ok(())
    }

    /// What a controller has now under the name of a node that is kept, if that is the node.
    async fn node_of(&self, kept: &Kept) -> Result<Option<Node>, NodeError> {
        Ok(kept.controller.jenkins.node(&kept.name).await?.filter(|node| self.owns(kept, node)))
    }
}
