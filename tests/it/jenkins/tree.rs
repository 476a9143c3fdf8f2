//! `tree=`: which fields of an answer a client wants.

use serde_json::{Map, Value};

/// The wanted fields, each with those of its own and the part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tree(Vec<Branch>);

#[derive(Debug, PartialEq, Eq)]
struct Branch {
    name: String,
    below: Tree,
    range: Option<(usize, usize)>,
}

impl Tree {
    /// Parses `a,b[c,d[e]]{0,10}`; none if it is not of that form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let tree = branches(&mut rest)?;
        rest.is_empty().then_some(tree)
    }

    /// What is left of a value. Objects keep their class, whatever is asked for.
    pub(super) fn prune(&self, value: &Value) -> Value {
        match value {
            Value::Array(list) => list.iter().map(|item| self.prune(item)).collect(),
            Value::Object(fields) => {
                let mut kept = Map::new();
                for (name, value) in fields {
                    if name == "_class" {
                        kept.insert(name.clone(), value.clone());
                    } else if let Some(branch) = self.0.iter().find(|branch| branch.name == *name || branch.name == "*") {
                        kept.insert(name.clone(), branch.take(value));
                    }
                }
                Value::Object(kept)
            }
            value => value.clone(),
        }
    }
}

impl Branch {
    fn take(&self, value: &Value) -> Value {
        match (value, self.range) {
            (Value::Array(list), Some((from, to))) => list.iter().take(to).skip(from).map(|item| self.below.prune(item)).collect(),
            (value, _) => self.below.prune(value),
        }
    }
}

fn branches(rest: &mut &str) -> Option<Tree> {
    let mut tree = Vec::new();
    loop {
        let end = rest.find([',', '[', ']', '{']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        *rest = after;
        let mut branch = Branch { name: name.trim().to_owned(), below: Tree(Vec::new()), range: None };
        if branch.name.is_empty() {
            return None;
        }
        if let Some(after) = rest.strip_prefix('[') {
            *rest = after;
            branch.below = branches(rest)?;
            *rest = rest.strip_prefix(']')?;
        }
        if let Some(after) = rest.strip_prefix('{') {
            let (range, after) = after.split_once('}')?;
            *rest = after;
            let number = |text: &str, absent| if text.trim().is_empty() { Some(absent) } else { text.trim().parse().ok() };
            branch.range = Some(match range.split_once(',') {
                Some((from, to)) => (number(from, 0)?, number(to, usize::MAX)?),
                None => {
                    let only = number(range, 0)?;
                    (only, only.checked_add(1)?)
                }
            });
        }
        tree.push(branch);
        match rest.strip_prefix(',') {
            Some(after) => *rest = after,
            None => return Some(Tree(tree)),
        }
    }
}
