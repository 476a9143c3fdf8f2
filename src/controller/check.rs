//! What a controller lets its user do: found out by doing it, with a node of its own that is removed again.

use crate::controller::Controller;
use crate::controller::jenkins::{About, Created, Executors, Jenkins, JenkinsError, NodeName, Permission, Wanted};
use crate::limits::CONTROLLER_CHECK_MAX;

/// How the node of a check is called, before what is random.
const PREFIX: &str = "muster-check-";
/// What people read of it.
const DESCRIPTION: &str = "Made by `muster controller check` to see what its user may do. It can be deleted.";

/// What was found out.
#[derive(Debug, Default)]
pub struct Checked {
    /// What it says of itself, if it answers.
    pub about: Option<About>,
    /// Who it takes the user for.
    pub user: Option<String>,
    /// What the user may not do, and needs to.
    pub missing: Vec<Permission>,
    /// What could not be found out.
    pub unseen: Vec<Permission>,
    /// The node that was made for this and could not be removed.
    pub left: Option<String>,
    /// What kept it from being found out, or is wrong besides.
    pub problem: Option<String>,
}

impl Checked {
    /// Notes a permission that is missing; any other error ends the check.
    fn tried<T>(&mut self, tried: Result<T, JenkinsError>) -> Result<Option<T>, JenkinsError> {
        match tried {
            Ok(done) => Ok(Some(done)),
            Err(JenkinsError::Permission(permission)) => {
                if !self.missing.contains(&permission) {
                    self.missing.push(permission);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Controller {
    /// Looks whether the controller answers, and what it lets its user do; none if somebody else has it looked at just now.
    pub async fn check(&self) -> Option<Checked> {
        let _alone = self.checking.try_lock().ok()?;
        let (mut checked, mut made) = (Checked::default(), None);
        let looked = tokio::time::timeout(CONTROLLER_CHECK_MAX, probe(&self.jenkins, &mut checked, &mut made)).await;
        checked.problem = match looked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("it took longer than {} s", CONTROLLER_CHECK_MAX.as_secs())),
        };
        let is_whole = checked.problem.is_none();
        if let Some(name) = made {
            remove(&self.jenkins, &name, &mut checked).await;
        }
        if !is_whole {
            let unsure = Permission::FIVE.into_iter().filter(|permission| !checked.missing.contains(permission));
            checked.unseen = unsure.collect();
        }
        Some(checked)
    }
}

async fn probe(jenkins: &Jenkins, checked: &mut Checked, made: &mut Option<NodeName>) -> Result<(), JenkinsError> {
    checked.about = Some(jenkins.about().await?);
    let user = jenkins.who_am_i().await?;
    if user.anonymous {
        return Err(JenkinsError::Credentials("it takes the user for anonymous".into()));
    }
    checked.user = Some(user.name);
    let Some(nodes) = checked.tried(jenkins.list().await)? else {
        checked.unseen = Permission::FIVE.to_vec();
        return Ok(());
    };
    // One that an earlier check could not remove is used again, so that they do not become more: who may not make nodes is told so of one
    // that is there already, too.
    let left = nodes.into_iter().find(|node| node.name.starts_with(PREFIX) && node.description == DESCRIPTION);
    let before = left.as_ref().map(|node| node.executors);
    let name = left.map_or_else(|| format!("{PREFIX}{:016x}", rand::random::<u64>()), |node| node.name);
    let (Ok(name), Some(one), Some(two)) = (name.parse::<NodeName>(), Executors::new(1), Executors::new(2)) else {
        return Err(JenkinsError::Odd(format!("a node of the name `{name}`")));
    };
    let wanted = Wanted {
        name: name.clone(),
        description: DESCRIPTION.into(),
        executors: one,
        remote_root: "/".into(),
        labels: Vec::new(),
        is_exclusive: true,
        environment: Vec::new(),
    };
    // Before it is asked for: of an answer that is lost nobody knows whether there is a node now.
    *made = Some(name.clone());
    let created = match jenkins.create(&wanted).await {
        Err(JenkinsError::Lost(why)) => match jenkins.node(&name).await? {
            Some(node) => Ok(Created::There(node)),
            None => Err(JenkinsError::Lost(why)),
        },
        created => created,
    };
    if checked.tried(created)?.is_none() {
        *made = None;
        checked.unseen = Permission::FIVE.into_iter().filter(|permission| !checked.missing.contains(permission)).collect();
        return Ok(());
    }
    checked.tried(jenkins.secret(&name).await)?;
    // Other than it is, so that something is written.
    let other = if before == Some(two.get()) { one } else { two };
    checked.tried(jenkins.update(&name, &[], other).await)?;
    checked.tried(jenkins.set_offline(&name, DESCRIPTION).await)?;
    Ok(())
}

async fn remove(jenkins: &Jenkins, name: &NodeName, checked: &mut Checked) {
    let removed = jenkins.delete(name).await;
    match checked.tried(removed) {
        Ok(Some(_)) => {}
        Ok(None) => checked.left = Some(name.to_string()),
        Err(error) => {
            checked.left = Some(name.to_string());
            checked.problem.get_or_insert_with(|| error.to_string());
        }
    }
}
