//! How a node is configured: by a form, by a `config.xml`, and which names and labels that makes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Version;
use super::xml::{Element, escape};

/// What a node is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) remote_fs: String,
    /// As asked for. With less than 1 the node is a ghost.
    pub(crate) executors: i64,
    pub(crate) mode: Mode,
    /// The labels as they were given.
    pub(crate) label: String,
    pub(crate) launcher: Option<Launcher>,
    pub(crate) retention: Option<Retention>,
    pub(crate) environment: Vec<(String, String)>,
}

/// Who may use a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Normal,
    Exclusive,
}

/// How an inbound agent comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launcher {
    pub(crate) web_socket: bool,
    pub(crate) tunnel: Option<String>,
    pub(crate) work_dir_disabled: bool,
    pub(crate) work_dir_path: String,
    pub(crate) internal_dir: String,
    pub(crate) fail_if_work_dir_is_missing: bool,
}

/// When Jenkins keeps an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Retention {
    Always,
    Demand { in_demand_delay: i64, idle_delay: i64 },
}

/// What Jenkins refuses with a 400 and an `X-Error`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Complaint {
    Exists(String),
    NameRequired,
    NotAllowed(String),
    Unsafe(char),
    TrailingDot,
    Control(String),
    NoName,
    NoSuchAgent(String),
    NoMode,
}

/// What happens to a `config.xml` that is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// A 500.
    Broken,
    Complaint(Complaint),
}

const LAUNCHER: &str = "hudson.slaves.JNLPLauncher";
const ALWAYS: &str = "hudson.slaves.RetentionStrategy$Always";
const DEMAND: &str = "hudson.slaves.RetentionStrategy$Demand";
const ENVIRONMENT: &str = "hudson.slaves.EnvironmentVariablesNodeProperty";

impl NodeConfig {
    /// A node as Muster would make it: inbound, WebSocket, one executor.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            remote_fs: "/srv/agent".into(),
            executors: 1,
            mode: Mode::Normal,
            label: String::new(),
            launcher: Some(Launcher { web_socket: true, ..Launcher::default() }),
            retention: Some(Retention::Always),
            environment: Vec::new(),
        }
    }

    /// Adds labels.
    pub(crate) fn label(mut self, label: &str) -> Self {
        self.label = label.into();
        self
    }

    /// Sets the number of executors.
    pub(crate) fn executors(mut self, executors: i64) -> Self {
        self.executors = executors;
        self
    }

    /// Whether Jenkins keeps a file of this node, and nothing else.
    pub(super) fn is_ghost(&self) -> bool {
        self.executors < 1
    }

    /// The labels, with the node's own name.
    pub(super) fn labels(&self) -> BTreeSet<String> {
        let mut labels = split_labels(&self.label);
        labels.insert(self.name.clone());
        labels
    }

    /// From the form's `json`. The name is that of the form, whatever is in here. None: Jenkins answers 500.
    pub(super) fn from_form(name: &str, form: &Value) -> Option<Self> {
        let text = |key: &str| form[key].as_str().unwrap_or_default().to_owned();
        let mode = match &form["mode"] {
            Value::Null => Mode::Normal,
            mode => match mode.as_str()? {
                "NORMAL" => Mode::Normal,
                "EXCLUSIVE" => Mode::Exclusive,
                _ => return None,
            },
        };
        let launcher = match &form["launcher"] {
            Value::Null => None,
            launcher if class(launcher)? == LAUNCHER => Some(Launcher::from_form(launcher)),
            _ => return None,
        };
        let retention = match &form["retentionStrategy"] {
            Value::Null => None,
            strategy => Some(match class(strategy)? {
                ALWAYS => Retention::Always,
                DEMAND => Retention::Demand {
                    in_demand_delay: number(&strategy["inDemandDelay"]).unwrap_or(0),
                    idle_delay: number(&strategy["idleDelay"]).unwrap_or(1),
                },
                _ => return None,
            }),
        };
        let properties = &form["nodeProperties"]["hudson-slaves-EnvironmentVariablesNodeProperty"]["env"];
        let properties = match properties {
            Value::Array(list) => list.as_slice(),
            Value::Object(_) => std::slice::from_ref(properties),
            _ => &[],
        };
        let environment = properties.iter().filter_map(|one| Some((one["key"].as_str()?.to_owned(), one["value"].as_str()?.to_owned())));
        Some(Self {
            name: name.to_owned(),
            description: text("nodeDescription"),
            remote_fs: text("remoteFS"),
            executors: if form["numExecutors"].is_null() { 1 } else { number(&form["numExecutors"]).unwrap_or(0) },
            mode,
            label: text("labelString"),
            launcher,
            retention,
            environment: environment.collect(),
        })
    }

    /// From a `config.xml`. What Jenkins does not know it drops without a word.
    pub(super) fn from_xml(text: &str) -> Result<Self, Rejected> {
        let root = Element::parse(text).filter(|root| root.name == "slave").ok_or(Rejected::Broken)?;
        let name = root.text_of("name").trim().to_owned();
        if name.is_empty() {
            return Err(Rejected::Complaint(Complaint::NoName));
        }
        check_name(&name).map_err(Rejected::Complaint)?;
        let launcher = root.child("launcher").filter(|launcher| launcher.attribute("class") == Some(LAUNCHER));
        let strategy = root.child("retentionStrategy");
        let retention = strategy.and_then(|strategy| match strategy.attribute("class")? {
            ALWAYS => Some(Retention::Always),
            DEMAND => Some(Retention::Demand {
                in_demand_delay: strategy.text_of("inDemandDelay").parse().unwrap_or(0),
                idle_delay: strategy.text_of("idleDelay").parse().unwrap_or(1),
            }),
            _ => None,
        });
        let mode = match root.text_of("mode") {
            "" | "NORMAL" => Mode::Normal,
            "EXCLUSIVE" => Mode::Exclusive,
            _ => return Err(Rejected::Broken),
        };
        let executors = match root.child("numExecutors") {
            // Nothing sets the field then, and an unset number is 0.
            None => 0,
            Some(executors) => executors.text.trim().parse().map_err(|_| Rejected::Broken)?,
        };
        Ok(Self {
            name,
            description: root.text_of("description").into(),
            remote_fs: root.text_of("remoteFS").into(),
            executors,
            mode,
            label: root.text_of("label").into(),
            launcher: launcher.map(Launcher::from_xml),
            retention,
            environment: environment_from_xml(&root),
        })
    }

    /// The `config.xml`.
    pub(super) fn to_xml(&self, version: Version) -> String {
        let mut out = String::from("<?xml version=\"1.1\" encoding=\"UTF-8\"?>\n<slave>\n");
        let mut line = |depth: usize, text: String| out.push_str(&format!("{}{text}\n", "  ".repeat(depth)));
        line(1, format!("<name>{}</name>", escape(&self.name)));
        line(1, format!("<description>{}</description>", escape(&self.description)));
        line(1, format!("<remoteFS>{}</remoteFS>", escape(&self.remote_fs)));
        line(1, format!("<numExecutors>{}</numExecutors>", self.executors));
        line(1, format!("<mode>{}</mode>", if self.mode == Mode::Normal { "NORMAL" } else { "EXCLUSIVE" }));
        match &self.retention {
            None => {}
            Some(Retention::Always) => line(1, format!("<retentionStrategy class=\"{ALWAYS}\"/>")),
            Some(Retention::Demand { in_demand_delay, idle_delay }) => {
                line(1, format!("<retentionStrategy class=\"{DEMAND}\">"));
                line(2, format!("<inDemandDelay>{in_demand_delay}</inDemandDelay>"));
                line(2, format!("<idleDelay>{idle_delay}</idleDelay>"));
                line(1, "</retentionStrategy>".into());
            }
        }
        if let Some(launcher) = &self.launcher {
            line(1, format!("<launcher class=\"{LAUNCHER}\">"));
            if let Some(tunnel) = &launcher.tunnel {
                line(2, format!("<tunnel>{}</tunnel>", escape(tunnel)));
            }
            line(2, "<workDirSettings>".into());
            line(3, format!("<disabled>{}</disabled>", launcher.work_dir_disabled));
            if !launcher.work_dir_path.is_empty() {
                line(3, format!("<workDirPath>{}</workDirPath>", escape(&launcher.work_dir_path)));
            }
            line(3, format!("<internalDir>{}</internalDir>", escape(&launcher.internal_dir)));
            line(3, format!("<failIfWorkDirIsMissing>{}</failIfWorkDirIsMissing>", launcher.fail_if_work_dir_is_missing));
            line(2, "</workDirSettings>".into());
            line(2, format!("<webSocket>{}</webSocket>", launcher.web_socket));
            line(1, "</launcher>".into());
        }
        line(1, format!("<label>{}</label>", escape(&self.label)));
        if self.environment.is_empty() {
            line(1, "<nodeProperties/>".into());
        } else {
            let comparator = match version {
                Version::V2_372 => "hudson.util.CaseInsensitiveComparator",
                Version::V2_452_2 => "java.lang.String$CaseInsensitiveComparator",
            };
            line(1, "<nodeProperties>".into());
            line(2, format!("<{ENVIRONMENT}>"));
            line(3, "<envVars serialization=\"custom\">".into());
            line(4, "<unserializable-parents/>".into());
            line(4, "<tree-map>".into());
            line(5, "<default>".into());
            line(6, format!("<comparator class=\"{comparator}\"/>"));
            line(5, "</default>".into());
            line(5, format!("<int>{}</int>", self.environment.len()));
            for text in self.environment.iter().flat_map(|(key, value)| [key, value]) {
                line(5, format!("<string>{}</string>", escape(text)));
            }
            line(4, "</tree-map>".into());
            line(3, "</envVars>".into());
            line(2, format!("</{ENVIRONMENT}>"));
            line(1, "</nodeProperties>".into());
        }
        out.push_str("</slave>");
        out
    }
}

impl Default for Launcher {
    fn default() -> Self {
        Self {
            web_socket: false,
            tunnel: None,
            work_dir_disabled: false,
            work_dir_path: String::new(),
            internal_dir: "remoting".into(),
            fail_if_work_dir_is_missing: false,
        }
    }
}

impl Launcher {
    fn from_form(form: &Value) -> Self {
        let settings = &form["workDirSettings"];
        let text = |value: &Value, absent: &str| value.as_str().unwrap_or(absent).to_owned();
        Self {
            web_socket: flag(&form["webSocket"]),
            tunnel: form["tunnel"].as_str().filter(|tunnel| !tunnel.is_empty()).map(ToOwned::to_owned),
            work_dir_disabled: flag(&settings["disabled"]),
            work_dir_path: text(&settings["workDirPath"], ""),
            internal_dir: text(&settings["internalDir"], "remoting"),
            fail_if_work_dir_is_missing: flag(&settings["failIfWorkDirIsMissing"]),
        }
    }

    fn from_xml(element: &Element) -> Self {
        let absent = Element::default();
        let settings = element.child("workDirSettings").unwrap_or(&absent);
        let internal_dir = settings.text_of("internalDir");
        Self {
            web_socket: element.text_of("webSocket").trim() == "true",
            tunnel: Some(element.text_of("tunnel").to_owned()).filter(|tunnel| !tunnel.is_empty()),
            work_dir_disabled: settings.text_of("disabled").trim() == "true",
            work_dir_path: settings.text_of("workDirPath").to_owned(),
            internal_dir: if internal_dir.is_empty() { "remoting".into() } else { internal_dir.into() },
            fail_if_work_dir_is_missing: settings.text_of("failIfWorkDirIsMissing").trim() == "true",
        }
    }
}

fn environment_from_xml(root: &Element) -> Vec<(String, String)> {
    let map = || root.child("nodeProperties")?.child(ENVIRONMENT)?.child("envVars")?.child("tree-map");
    let strings = map().map(|map| map.children.iter().filter(|child| child.name == "string").map(|child| child.text.clone()));
    let strings: Vec<String> = strings.into_iter().flatten().collect();
    strings.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

/// The class that a form names, in either way.
fn class(form: &Value) -> Option<&str> {
    form["stapler-class"].as_str().or_else(|| form["$class"].as_str())
}

fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_str() == Some("true"))
}

/// Whether Jenkins takes a name. That it can address the node afterwards is another matter.
pub(super) fn check_name(name: &str) -> Result<(), Complaint> {
    if matches!(name, "." | "..") {
        return Err(Complaint::NotAllowed(name.into()));
    }
    for letter in name.chars() {
        if letter.is_control() {
            let shown = |letter: char| if letter.is_control() { format!("\\u{};", u32::from(letter)) } else { letter.to_string() };
            return Err(Complaint::Control(name.chars().map(shown).collect()));
        }
        if "?*/\\%!@#$^&|<>[]:;".contains(letter) {
            return Err(Complaint::Unsafe(letter));
        }
    }
    if name.ends_with('.') {
        return Err(Complaint::TrailingDot);
    }
    Ok(())
}

/// Splits at white space, but not within quotes.
pub(super) fn split_labels(text: &str) -> BTreeSet<String> {
    let (mut labels, mut label, mut begun, mut quote) = (BTreeSet::new(), String::new(), false, None);
    for letter in text.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            Some(_) => label.push(letter),
            None if letter == '"' || letter == '\'' => (quote, begun) = (Some(letter), true),
            None if letter.is_whitespace() => {
                if begun {
                    labels.insert(std::mem::take(&mut label));
                }
                begun = false;
            }
            None => {
                label.push(letter);
                begun = true;
            }
        }
    }
    if begun {
        labels.insert(label);
    }
    labels
}

/// A label, or an expression of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Label {
    Atom(String),
    Not(Box<Label>),
    Paren(Box<Label>),
    And(Box<Label>, Box<Label>),
    Or(Box<Label>, Box<Label>),
    Implies(Box<Label>, Box<Label>),
    Iff(Box<Label>, Box<Label>),
}

impl Label {
    /// Parses an expression. What is none is a label of that name.
    pub(super) fn parse(text: &str) -> Self {
        let mut rest = text.trim();
        match binary(&mut rest, 0) {
            Some(label) if rest.is_empty() => label,
            _ => Self::Atom(text.to_owned()),
        }
    }

    pub(super) fn fits(&self, labels: &BTreeSet<String>) -> bool {
        match self {
            Self::Atom(name) => labels.contains(name),
            Self::Not(label) => !label.fits(labels),
            Self::Paren(label) => label.fits(labels),
            Self::And(left, right) => left.fits(labels) && right.fits(labels),
            Self::Or(left, right) => left.fits(labels) || right.fits(labels),
            Self::Implies(left, right) => !left.fits(labels) || right.fits(labels),
            Self::Iff(left, right) => left.fits(labels) == right.fits(labels),
        }
    }

    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::Atom(_) => "hudson.model.labels.LabelAtom",
            Self::Not(_) => "hudson.model.labels.LabelExpression$Not",
            Self::Paren(_) => "hudson.model.labels.LabelExpression$Paren",
            Self::And(..) => "hudson.model.labels.LabelExpression$And",
            Self::Or(..) => "hudson.model.labels.LabelExpression$Or",
            Self::Implies(..) => "hudson.model.labels.LabelExpression$Implies",
            Self::Iff(..) => "hudson.model.labels.LabelExpression$Iff",
        }
    }
}

/// The operators, from those that bind least.
type Join = fn(Box<Label>, Box<Label>) -> Label;
const OPERATORS: [(&str, Join); 4] = [("<->", Label::Iff), ("->", Label::Implies), ("||", Label::Or), ("&&", Label::And)];

fn binary(rest: &mut &str, level: usize) -> Option<Label> {
    let Some((sign, join)) = OPERATORS.get(level) else { return unary(rest) };
    let mut left = binary(rest, level + 1)?;
    while let Some(after) = rest.strip_prefix(sign) {
        *rest = after.trim_start();
        left = join(Box::new(left), Box::new(binary(rest, level + 1)?));
    }
    Some(left)
}

fn unary(rest: &mut &str) -> Option<Label> {
    let found = if let Some(after) = rest.strip_prefix('!') {
        *rest = after.trim_start();
        Label::Not(Box::new(unary(rest)?))
    } else if let Some(after) = rest.strip_prefix('(') {
        *rest = after.trim_start();
        let inner = binary(rest, 0)?;
        *rest = rest.strip_prefix(')')?;
        Label::Paren(Box::new(inner))
    } else if let Some(after) = rest.strip_prefix('"') {
        let (name, after) = after.split_once('"')?;
        *rest = after;
        Label::Atom(name.to_owned())
    } else {
        let ends = |(at, letter): (usize, char)| (" \t()!\"&|<".contains(letter) || rest[at..].starts_with("->")).then_some(at);
        let end = rest.char_indices().find_map(ends).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            return None;
        }
        *rest = after;
        Label::Atom(name.to_owned())
    };
    *rest = rest.trim_start();
    Some(found)
}
