//! What Jenkins says, in the language that a client asked for. English is as measured; of the others, what the reference quotes is.

use super::config::Complaint;

/// A language that Jenkins speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Language {
    #[default]
    English,
    German,
    French,
}

impl Language {
    /// The one that `Accept-Language` wants most; none if that is none of these.
    pub(super) fn accepted(header: &str) -> Option<Self> {
        let wish = |part: &str| {
            let (tag, weight) = part.split_once(';').unwrap_or((part, "q=1"));
            let weight: f32 = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse().ok()).unwrap_or(1.0);
            let language = match tag.trim().split('-').next()?.to_ascii_lowercase().as_str() {
                "en" => Self::English,
                "de" => Self::German,
                "fr" => Self::French,
                _ => return None,
            };
            Some((weight, language))
        };
        let mut best: Option<(f32, Self)> = None;
        for (weight, language) in header.split(',').filter_map(wish) {
            if best.is_none_or(|(most, _)| weight > most) {
                best = Some((weight, language));
            }
        }
        Some(best?.1)
    }

    /// The words of an `X-Error`, before what is beyond Latin-1 is blanked.
    pub(super) fn complaint(self, complaint: &Complaint) -> String {
        use Language::{English, French, German};
        match (self, complaint) {
            (English, Complaint::Exists(name)) => format!("Agent called ‘{name}’ already exists"),
            (German, Complaint::Exists(name)) => format!("Ein Agent mit dem Namen ‚{name}‘ existiert bereits."),
            (French, Complaint::Exists(name)) => format!("L'agent ‘{name}’ existe déjà"),
            (_, Complaint::NameRequired) => "Query parameter 'name' is required".into(),
            (English, Complaint::NotAllowed(name)) => format!("‘{name}’ is not an allowed name"),
            (German, Complaint::NotAllowed(name)) => format!("‚{name}‘ ist kein erlaubter Name"),
            (French, Complaint::NotAllowed(name)) => format!("‘{name}’ n'est pas un nom autorisé"),
            (English, Complaint::Unsafe(letter)) => format!("‘{letter}’ is an unsafe character"),
            (German, Complaint::Unsafe(letter)) => format!("‚{letter}‘ ist kein „sicheres“ Zeichen"),
            (French, Complaint::Unsafe(letter)) => format!("‘{letter}’ est un caractère dangereux"),
            (_, Complaint::TrailingDot) => "A name cannot end with ‘.’".into(),
            (_, Complaint::Control(name)) => format!("No control code is allowed: {name}"),
            (English, Complaint::NoName) => "No name is specified".into(),
            (German, Complaint::NoName) => "Kein Name angegeben".into(),
            (French, Complaint::NoName) => "Aucun nom n'est spécifié".into(),
            (English, Complaint::NoSuchAgent(name)) => format!("No such agent: {name}"),
            (German, Complaint::NoSuchAgent(name)) => format!("Agent „{name}“ existiert nicht."),
            (French, Complaint::NoSuchAgent(name)) => format!("Cet agent n'existe pas : {name}"),
            (_, Complaint::NoMode) => "No mode given".into(),
        }
    }

    /// What the node of Jenkins itself is called.
    pub(super) fn built_in_node(self) -> &'static str {
        match self {
            Self::English => "Built-In Node",
            Self::German => "Integrierter Knoten",
            Self::French => "Nœud intégré",
        }
    }

    /// Who took a node offline, and why.
    pub(super) fn disconnected_by(self, user: &str, message: &str) -> String {
        let by = match self {
            Self::English => "Disconnected by",
            Self::German => "Getrennt durch Benutzer",
            Self::French => "Déconnecté par",
        };
        if message.is_empty() { format!("{by} {user}") } else { format!("{by} {user} : {message}") }
    }

    /// What a build waits for.
    pub(super) fn why(self, wait: &Wait) -> String {
        use Language::{English, French, German};
        match (self, wait) {
            (English, Wait::NoNodes(label)) => format!("There are no nodes with the label ‘{label}’"),
            (German, Wait::NoNodes(label)) => format!("Es gibt keine Knoten mit dem Label ‚{label}‘"),
            (French, Wait::NoNodes(label)) => format!("Il n'y a pas de nœuds avec le libellé ‘{label}’"),
            (English, Wait::Offline(node)) => format!("‘{node}’ is offline"),
            (German, Wait::Offline(node)) => format!("‚{node}‘ ist offline"),
            (French, Wait::Offline(node)) => format!("‘{node}’ est hors ligne"),
            (English, Wait::AllOffline(label)) => format!("All nodes of label ‘{label}’ are offline"),
            (German, Wait::AllOffline(label)) => format!("Alle Knoten des Labels ‚{label}‘ sind offline"),
            (French, Wait::AllOffline(label)) => format!("Tous les agents avec le libellé ‘{label}’ sont hors ligne"),
            (English, Wait::Executor(on)) => format!("Waiting for next available executor on ‘{on}’"),
            (German, Wait::Executor(on)) => format!("Warte auf den nächsten freien Build-Prozessor auf ‚{on}‘"),
            (French, Wait::Executor(on)) => format!("En attente du prochain exécuteur disponible sur ‘{on}’"),
            (English, Wait::AnyExecutor) => "Waiting for next available executor".into(),
            (German, Wait::AnyExecutor) => "Warte auf den nächsten freien Build-Prozessor".into(),
            (French, Wait::AnyExecutor) => "En attente du prochain exécuteur disponible".into(),
            (English, Wait::ShuttingDown) => "Jenkins is about to shut down".into(),
            (German, Wait::ShuttingDown) => "Jenkins wird heruntergefahren".into(),
            (French, Wait::ShuttingDown) => "Jenkins est sur le point de se fermer".into(),
        }
    }
}

/// Why a build waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wait {
    NoNodes(String),
    Offline(String),
    AllOffline(String),
    Executor(String),
    AnyExecutor,
    ShuttingDown,
}
