//! What the policy grants: paths, programs, variables.

use crate::limits::PATH_BYTES_MAX;
use crate::machine::CallError;
use crate::policy::Glob;
use crate::sandbox::gate::Gate;

/// Bytes that a refusal shows of an argument that can not be what it is.
const SHOWN_BYTES_MAX: usize = 200;

/// Variables that load code into a program, or into any script of an interpreter, so that a grant to run one would be a grant to run
/// everything. `*` stands for any end.
const LOADERS: [&str; 16] = [
    "LD_*",
    "DYLD_*",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "BASH_ENV",
    "BASH_FUNC_*",
    "ENV",
    "SHELLOPTS",
    "PYTHON*",
    "PERL5*",
    "RUBYOPT",
    "RUBYLIB",
    "NODE_OPTIONS",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
];

/// The refusal that names the grant that is missing.
pub(super) fn missing(kind: &str, what: &str) -> CallError {
    let key = if kind == "bundles" { "bundles".to_owned() } else { format!("grants.{kind}") };
    CallError::Denied(format!(
        "`{key}` of the label's policy does not have `{}`; an admin adds it",
        cut(what, PATH_BYTES_MAX).escape_default()
    ))
}

/// What is wrong with the variables of a command.
pub(super) fn env_problem(env: &[(String, String)]) -> Option<String> {
    env.iter().find_map(|(name, value)| {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Some(format!("`{}` is no variable's name, or its value holds a NUL", cut(name, SHOWN_BYTES_MAX).escape_default()));
        }
        let loads = LOADERS.iter().any(|loader| match loader.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == loader,
        });
        loads.then(|| {
            format!("the variable `{}` makes a program load other code; no policy grants it", cut(name, SHOWN_BYTES_MAX).escape_default())
        })
    })
}

/// What is wrong with the arguments of a command.
pub(super) fn args_problem(args: &[String]) -> Option<String> {
    args.iter().any(|arg| arg.contains('\0')).then(|| "an argument holds a NUL".to_owned())
}

impl Gate {
    /// An absolute path without `.`, `..`, doubled or trailing slashes.
    pub(super) fn path(&self, path: &str) -> Result<String, CallError> {
        let invalid = |why: &str| Err(CallError::Invalid(format!("the path `{}` {why}", cut(path, SHOWN_BYTES_MAX).escape_default())));
        if path.is_empty() || path.len() > PATH_BYTES_MAX {
            return invalid("is empty or too long");
        }
        if path.contains('\0') {
            return invalid("holds a NUL");
        }
        let root = if path.starts_with('/') { "" } else { self.registration().root.as_str() };
        let mut absolute = String::with_capacity(root.len() + path.len() + 1);
        for part in root.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => return invalid("has `..` in it"),
                part => {
                    absolute.push('/');
                    absolute.push_str(part);
                }
            }
        }
        if absolute.is_empty() {
            absolute.push('/');
        }
        Ok(absolute)
    }

    /// A path that the policy lets the module write.
    pub(super) fn writable(&self, path: &str) -> Result<String, CallError> {
        let path = self.path(path)?;
        if self.granted(&self.policy().grants.write, &path) { Ok(path) } else { Err(self.missing("write", &path)) }
    }

    /// A directory whose whole content the policy lets the module write: a grant must cover any name below it.
    pub(super) fn destination(&self, path: &str) -> Result<String, CallError> {
        let path = self.path(path)?;
        // Only a grant that ends in `**` covers every name below it, at any depth. That it covers one made-up name right below the
        // destination tells that the destination is what comes before the `**`, or is below that.
        let below = path.trim_end_matches('/');
        let probe = format!("{below}/\u{1}");
        let root = &self.registration().root;
        let open = |glob: &Glob| glob.as_str() == "**" || glob.as_str().ends_with("/**");
        let covered = self.policy().grants.write.iter().any(|glob| open(glob) && glob.grants(root, &probe));
        if covered { Ok(path) } else { Err(self.missing("write", &format!("{below}/**"))) }
    }

    /// A path that the policy lets the module read.
    pub(super) fn readable(&self, path: &str) -> Result<String, CallError> {
        let path = self.path(path)?;
        let grants = &self.policy().grants;
        let granted = self.granted(&grants.read, &path) || self.granted(&grants.write, &path);
        if granted { Ok(path) } else { Err(self.missing("read", &path)) }
    }

    /// A program that the policy lets the module run.
    pub(super) fn program(&self, program: &str) -> Result<String, CallError> {
        if !program.contains('/') {
            let program = cut(program, SHOWN_BYTES_MAX).escape_default();
            return Err(CallError::Invalid(format!("`{program}` is not a path; a program is named by its path")));
        }
        let path = self.path(program)?;
        if self.granted(&self.policy().grants.run, &path) { Ok(path) } else { Err(self.missing("run", &path)) }
    }

    /// The refusal of a path, which is named as a policy would have it: below the root where it is.
    fn missing(&self, kind: &str, path: &str) -> CallError {
        let root = self.registration().root.trim_end_matches('/');
        missing(kind, path.strip_prefix(root).and_then(|below| below.strip_prefix('/')).unwrap_or(path))
    }

    fn granted(&self, globs: &[Glob], path: &str) -> bool {
        globs.iter().any(|glob| glob.grants(&self.registration().root, path))
    }

    fn policy(&self) -> &crate::policy::LabelPolicy {
        &self.inputs.policy
    }
}

fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default()
}
