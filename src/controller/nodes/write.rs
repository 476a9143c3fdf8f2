//! Writing nodes: in the store first, then at their controllers; and the other way round when they go.

use std::sync::Arc;

use crate::controller::Controller;
use crate::controller::jenkins::{Created, Executors, JenkinsError, NodeName, NodeNameError, Wanted};
use crate::controller::nodes::node::Kept;
use crate::controller::nodes::{NodeError, Nodes, Wish, marker};
use crate::journal::now_us;
use crate::names::{AgentName, ControllerName, LabelName};
use crate::store::StoreError;
use crate::store::nodes::{NodePlan, NodeRow};

impl Nodes {
    /// Makes sure that an agent has its node, as it is wished: one that it has already, one of an earlier life of it that is kept, one that this
    /// server made and forgot, or a new one. `is_living` says whether an agent lives.
    ///
    /// # Errors
    /// Why it has none. Asked again, it goes on from there.
    pub async fn ensure(
        &self,
        controller: &Arc<Controller>,
        wish: &Wish,
        is_living: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Arc<Kept>, NodeError> {
        if Executors::new(wish.plan.executors).is_none() {
            return Err(NodeError::Executors(wish.plan.executors));
        }
        let mut is_anew = false;
        loop {
            let kept = self.row_for(controller, wish, is_living, is_anew).await?;
            let _turn = kept.turn.lock().await;
            if kept.is_over() {
                continue;
            }
            let before = kept.row();
            let is_same_boot = before.plan.is_kept || wish.plan.is_kept || before.plan.instance == wish.plan.instance;
            let is_renewed = before.made_us.is_some() && !(is_same_boot && is_set_up_alike(&before.plan, &wish.plan));
            if is_renewed || before.plan.is_plain != wish.plan.is_plain {
                self.remove_now(&kept).await?;
                is_anew = true;
                continue;
            }
            let mut row = NodeRow::clone(&before);
            (row.label, row.plan, row.leaving_us) = (wish.label.clone(), wish.plan.clone(), None);
            if row != *before {
                self.store.update_node(&row).await?;
                kept.put(row);
            }
            return self.bring(&kept).await.map(|()| Arc::clone(&kept));
        }
    }

    /// Makes a node anew that its controller lost, and corrects its labels and executors.
    ///
    /// # Errors
    /// Why it can not.
    pub async fn restore(&self, kept: &Arc<Kept>, labels: Vec<LabelName>, executors: u32) -> Result<(), NodeError> {
        let Ok(_turn) = kept.turn.try_lock() else { return Ok(()) };
        if kept.is_over() || Executors::new(executors).is_none() {
            return Ok(());
        }
        let mut row = NodeRow::clone(&kept.row());
        if row.plan.labels != labels || row.plan.executors != executors {
            (row.plan.labels, row.plan.executors) = (labels, executors);
            self.store.update_node(&row).await?;
            kept.put(row);
        }
        self.bring(kept).await
    }

    /// Removes a node, if it is Muster's, and then forgets it; unless its row is another by now than when that was decided.
    ///
    /// # Errors
    /// When it is not known to be gone.
    pub async fn remove(&self, kept: &Arc<Kept>, decided: &Arc<NodeRow>) -> Result<(), NodeError> {
        let Ok(_turn) = kept.turn.try_lock() else { return Ok(()) };
        // Its agent may have come back to it.
        if kept.is_over() || !Arc::ptr_eq(&kept.row(), decided) { Ok(()) } else { self.remove_now(kept).await }
    }

    /// Removes a node that no row tells of.
    ///
    /// # Errors
    /// When it is not known to be gone.
    pub async fn remove_orphan(&self, controller: &Controller, name: &NodeName) -> Result<(), NodeError> {
        // Between the list and now somebody may have put another one there.
        let Some(node) = controller.jenkins.node(name).await? else { return Ok(()) };
        if self.orphan(controller, &node).is_some() {
            controller.jenkins.delete(name).await?;
        }
        Ok(())
    }

    /// Closes the door of a node that no row tells of.
    ///
    /// # Errors
    /// When it can not be closed.
    pub async fn close_orphan(&self, controller: &Controller, name: &NodeName) -> Result<(), NodeError> {
        Ok(controller.jenkins.set_offline(name, &marker::mark("its agent is not known any more")).await?)
    }

    /// Notes that an agent's nodes are to go, but for the one at a controller.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn leave(&self, agent_id: &str, but: Option<&ControllerName>) -> Result<(), StoreError> {
        for kept in self.of(agent_id).into_iter().filter(|kept| Some(&kept.controller.name) != but) {
            let _turn = kept.turn.lock().await;
            let mut row = NodeRow::clone(&kept.row());
            if row.leaving_us.is_none() && !kept.is_over() {
                row.leaving_us = Some(now_us());
                self.store.update_node(&row).await?;
                kept.put(row);
            }
            self.poke(&kept.controller.name);
        }
        Ok(())
    }

    /// The row of a wish: written, if there is none. One that is wanted anew is none of those that the last list shows.
    async fn row_for(
        &self,
        controller: &Arc<Controller>,
        wish: &Wish,
        is_living: &(dyn Fn(&str) -> bool + Sync),
        is_anew: bool,
    ) -> Result<Arc<Kept>, NodeError> {
        if let Some(kept) = self.of(&wish.agent_id).into_iter().find(|kept| kept.controller.name == controller.name) {
            return Ok(kept);
        }
        if let Some(kept) = self.take_over(controller, wish, is_living).await? {
            return Ok(kept);
        }
        let found = self.look_at(&controller.name).filter(|_| !is_anew).and_then(|look| {
            let mut ours = look.nodes.values().filter(|node| self.orphan(controller, node) == Some(wish.agent_id.as_str()));
            ours.find_map(|node| node.name.parse::<NodeName>().ok())
        });
        let is_found = found.is_some();
        let name = match found {
            Some(name) => name,
            None => name(&controller.name_prefix, &wish.agent, wish.plan.is_plain)?,
        };
        let now = now_us();
        let row = NodeRow {
            controller: controller.name.clone(),
            name: name.to_string(),
            agent_id: wish.agent_id.clone(),
            agent: wish.agent.clone(),
            label: wish.label.clone(),
            plan: wish.plan.clone(),
            began_us: now,
            made_us: is_found.then_some(now),
            leaving_us: None,
        };
        match self.store.insert_node(&row).await {
            // Two agents of one name, the one gone and its node not yet.
            Err(StoreError::Conflict(_)) => {
                return Err(NodeError::Controller(JenkinsError::Away(format!("an earlier node `{name}` is being removed"))));
            }
            written => written?,
        }
        let kept = Arc::new(Kept::new(Arc::clone(controller), name, row));
        self.kept().entry(wish.agent_id.clone()).or_default().push(Arc::clone(&kept));
        Ok(kept)
    }

    /// Takes a node over that was kept when an agent of the same name went.
    async fn take_over(
        &self,
        controller: &Arc<Controller>,
        wish: &Wish,
        is_living: &(dyn Fn(&str) -> bool + Sync),
    ) -> Result<Option<Arc<Kept>>, StoreError> {
        let stayed = self.at(&controller.name).into_iter().find(|kept| {
            let row = kept.row();
            row.agent == wish.agent && row.plan.is_kept && row.leaving_us.is_none() && !is_living(&row.agent_id)
        });
        let Some(stayed) = stayed else { return Ok(None) };
        let _turn = stayed.turn.lock().await;
        let mut row = NodeRow::clone(&stayed.row());
        if stayed.is_over() || is_living(&row.agent_id) {
            return Ok(None);
        }
        let before = std::mem::replace(&mut row.agent_id, wish.agent_id.clone());
        self.store.update_node(&row).await?;
        stayed.put(row);
        self.take_out(&before, &stayed);
        self.kept().entry(wish.agent_id.clone()).or_default().push(Arc::clone(&stayed));
        Ok(Some(Arc::clone(&stayed)))
    }

    /// Makes a node, unless it is there, and corrects its labels and executors. Its turn is held.
    async fn bring(&self, kept: &Arc<Kept>) -> Result<(), NodeError> {
        let row = kept.row();
        let jenkins = &kept.controller.jenkins;
        // One that was never made is not looked for: what is missing costs Jenkins a long page.
        let found = if row.made_us.is_some() { jenkins.node(&kept.name).await? } else { None };
        let node = match found {
            Some(node) => node,
            None => match self.create(kept, &row).await? {
                Created::Made => return Ok(()),
                Created::There(node) => node,
            },
        };
        if !self.owns(kept, &node) {
            // The row is not to claim it when its owner is asked for next.
            self.forget(kept).await?;
            return Err(NodeError::Foreign(kept.name.clone()));
        }
        self.made(kept).await?;
        let Some(executors) = Executors::new(row.plan.executors) else { return Err(NodeError::Executors(row.plan.executors)) };
        let is_right = node.executors == executors.get() && row.plan.labels.iter().all(|label| node.labels.contains(label.as_str()));
        if !is_right || !kept.has_seen_labels(&node.labels) {
            jenkins.update(&kept.name, &row.plan.labels, executors).await?;
            kept.see_labels(node.labels);
        }
        kept.touch();
        Ok(())
    }

    async fn create(&self, kept: &Arc<Kept>, row: &NodeRow) -> Result<Created, NodeError> {
        let executors = Executors::new(row.plan.executors).ok_or(NodeError::Executors(row.plan.executors))?;
        // One that was there is gone; if somebody makes another one of its name now, that is theirs.
        if row.made_us.is_some() {
            let missing = NodeRow { made_us: None, ..row.clone() };
            self.store.update_node(&missing).await?;
            kept.put(missing);
        }
        let wanted = Wanted {
            name: kept.name.clone(),
            description: self.marker.description(&row.agent, &row.label, &row.agent_id),
            executors,
            remote_root: row.plan.root.clone(),
            labels: row.plan.labels.clone(),
            is_exclusive: row.plan.is_exclusive,
            environment: row.plan.environment.clone().into_iter().collect(),
        };
        let created = match kept.controller.jenkins.create(&wanted).await {
            // Whether it was made is looked up, before it is asked for again.
            Err(JenkinsError::Lost(why)) => match kept.controller.jenkins.node(&kept.name).await? {
                Some(node) => Created::There(node),
                None => return Err(JenkinsError::Lost(why).into()),
            },
            created => created?,
        };
        kept.touch();
        if created == Created::Made {
            self.made(kept).await?;
        }
        Ok(created)
    }

    async fn made(&self, kept: &Kept) -> Result<(), StoreError> {
        let mut row = NodeRow::clone(&kept.row());
        if row.made_us.is_none() {
            row.made_us = Some(now_us());
            self.store.update_node(&row).await?;
            kept.put(row);
        }
        Ok(())
    }

    async fn remove_now(&self, kept: &Arc<Kept>) -> Result<(), NodeError> {
        let row = kept.row();
        let is_ours = match row.made_us.is_some() && !row.plan.is_plain {
            true => true,
            false => kept.controller.jenkins.node(&kept.name).await?.is_some_and(|node| self.owns(kept, &node)),
        };
        if is_ours {
            kept.controller.jenkins.delete(&kept.name).await?;
        }
        Ok(self.forget(kept).await?)
    }

    async fn forget(&self, kept: &Kept) -> Result<(), StoreError> {
        let row = kept.row();
        self.store.delete_node(&row.controller, &row.name).await?;
        kept.end();
        self.take_out(&row.agent_id, kept);
        Ok(())
    }

    fn take_out(&self, agent_id: &str, kept: &Kept) {
        let mut all = self.kept();
        if let Some(of_agent) = all.get_mut(agent_id) {
            of_agent.retain(|other| other.controller.name != kept.controller.name);
            if of_agent.is_empty() {
                all.remove(agent_id);
            }
        }
    }
}

/// Whether only what can be corrected of a node is different.
fn is_set_up_alike(one: &NodePlan, other: &NodePlan) -> bool {
    (&one.root, one.is_exclusive, &one.environment) == (&other.root, other.is_exclusive, &other.environment)
}

/// A name for an agent's node.
fn name(prefix: &str, agent: &AgentName, is_plain: bool) -> Result<NodeName, NodeNameError> {
    match is_plain {
        true => format!("{prefix}{agent}").parse(),
        false => format!("{prefix}{agent}-{:016x}", rand::random::<u64>()).parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_name_does_not_come_again_unless_it_is_to_be_plain() {
        let agent = "web-1".parse().unwrap();
        let names = [name("ci-", &agent, false).unwrap(), name("ci-", &agent, false).unwrap()];
        assert!(names[0] != names[1] && names.iter().all(|name| name.as_str().starts_with("ci-web-1-") && name.as_str().len() == 25));
        assert_eq!(name("ci-", &agent, true).unwrap().as_str(), "ci-web-1");
        assert!(name("", &"api".parse().unwrap(), true).is_err());
        let longest = "x".repeat(63);
        assert!(name(&longest, &longest.parse().unwrap(), false).is_ok());
    }
}
