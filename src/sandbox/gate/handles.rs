//! What a module holds by handles: secrets and bundles of the policy.

use crate::bits::contents::Bundle;
use crate::journal::{Answered, Asked};
use crate::limits::CALL_FILE_BYTES_MAX;
use crate::machine::CallError;
use crate::sandbox::gate::{Gate, Refused, Secret, grants};

impl Gate {
    /// Opens a secret; none if it is not granted or not there.
    pub(crate) async fn open_secret(&mut self, name: &str) -> Result<Option<Secret>, Refused> {
        self.admit(Asked::OpenSecret { name: name.into() }, 0, Ok(())).await?;
        let secret = match &self.tape {
            Some(tape) => tape.truth().and_then(|there| if there { valueless(name).map(Some) } else { Ok(None) }),
            None => self.find_secret(name).await,
        };
        let result = self.close(&format!("open secret {name}"), secret, |_, found| Answered::Truth { value: found.is_some() });
        match result {
            Ok(secret) => Ok(secret),
            // The contract has no error here: that it is missing is all the module learns, and the log says why.
            Err(Refused::Answer(_)) => Ok(None),
            Err(Refused::End) => Err(Refused::End),
        }
    }

    /// Reads every secret that is granted, so that one which an earlier run left on the machine is cut from what comes back of there. Answers
    /// the names of those that are there.
    pub(super) async fn know_secrets(&mut self) -> Vec<String> {
        let policy = &self.inputs.policy;
        let Some(secrets) = self.inputs.secrets.as_ref().filter(|_| !policy.grants.secrets.is_empty()) else { return Vec::new() };
        let mut known = Vec::new();
        for name in &policy.grants.secrets {
            // What is wrong with one is told when it is opened.
            if let Ok(Some(Ok(value))) = secrets.get(&policy.team, name).await.map(|found| found.map(String::from_utf8)) {
                known.push((name, value));
            }
        }
        self.redactor.add(known.iter().map(|(name, value)| (*name, value.as_str())));
        known.into_iter().map(|(name, _)| name.to_string()).collect()
    }

    async fn find_secret(&mut self, name: &str) -> Result<Option<Secret>, CallError> {
        let policy = &self.inputs.policy;
        let Some(name) = policy.grants.secrets.iter().find(|granted| granted.as_str() == name) else {
            return Err(grants::missing("secrets", name));
        };
        let Some(secrets) = &self.inputs.secrets else { return Ok(None) };
        let found = secrets.get(&policy.team, name).await.map_err(|error| CallError::Other(error.to_string()))?;
        let Some(bytes) = found else { return Ok(None) };
        let value = String::from_utf8(bytes).map_err(|_| CallError::Invalid(format!("the secret {name} is not UTF-8")))?;
        // It may have been changed since the run began.
        self.redactor.add([(name, value.as_str())]);
        Ok(Some(Secret { name: name.clone(), value: value.into() }))
    }

    /// Opens a bundle; none if the policy does not name it.
    pub(crate) async fn open_bundle(&mut self, name: &str) -> Result<Option<Bundle>, Refused> {
        self.admit(Asked::OpenBundle { name: name.into() }, 0, Ok(())).await?;
        let found = self.inputs.bundles.iter().find(|(own, _)| own.as_str() == name).map(|(_, bundle)| bundle.clone());
        let result = found.ok_or_else(|| grants::missing("bundles", name));
        match self.close(&format!("open bundle {name}"), result, |_, _| Answered::Truth { value: true }) {
            Ok(bundle) => Ok(Some(bundle)),
            Err(Refused::Answer(_)) => Ok(None),
            Err(Refused::End) => Err(Refused::End),
        }
    }

    /// Reads one small file of a bundle.
    pub(crate) async fn read_bundle(&mut self, bundle: &Bundle, path: &str) -> Result<Option<Vec<u8>>, Refused> {
        self.admit(Asked::ReadBundle { bundle: bundle.name.to_string(), path: path.into() }, 0, Ok(())).await?;
        let result = match &self.tape {
            Some(tape) => tape.content(),
            None => bundle.read_file(path, CALL_FILE_BYTES_MAX as u64).await.map_err(|error| CallError::Other(error.to_string())),
        };
        let result = self.close(&format!("read {path} of bundle {}", bundle.name), result, |keeper, found| match found {
            Some(bytes) => Answered::File { contents: keeper.keep(bytes) },
            None => Answered::Nothing {},
        });
        let found = match result {
            Ok(found) => found,
            Err(Refused::Answer(_)) => None,
            Err(Refused::End) => return Err(Refused::End),
        };
        self.charge_in(found.as_ref().map_or(0, Vec::len))?;
        Ok(found)
    }
}

/// A secret of which a replay knows the name alone.
fn valueless(name: &str) -> Result<Secret, CallError> {
    let name = name.parse().map_err(|_| CallError::Invalid(format!("`{}` is no secret's name", name.escape_default())))?;
    Ok(Secret { name, value: "".into() })
}
