//! Whether something is what was recorded, but for the secrets that were cut from that.
//!
//! What stands in a journal as `[secret NAME]` may have been a part of the module's own words: a secret `srv` is cut from `/srv/bin` too. There
//! any text fits.

use serde_json::Value;

/// The marks that stand for secrets in one journal.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<String>);

impl Marks {
    /// The marks of these secrets.
    pub(super) fn of(names: &[String]) -> Self {
        Self(names.iter().map(|name| crate::journal::mark(name)).collect())
    }

    /// Whether a text is what was recorded.
    pub(super) fn fit(&self, recorded: &str, now: &str) -> bool {
        recorded == now || (!self.0.is_empty() && self.fit_pieces(recorded, now))
    }

    /// Whether a value is what was recorded.
    pub(super) fn fit_value(&self, recorded: &Value, now: &Value) -> bool {
        match (recorded, now) {
            (Value::String(recorded), Value::String(now)) => self.fit(recorded, now),
            (Value::Array(recorded), Value::Array(now)) => {
                recorded.len() == now.len() && recorded.iter().zip(now).all(|(recorded, now)| self.fit_value(recorded, now))
            }
            (Value::Object(recorded), Value::Object(now)) => {
                recorded.len() == now.len()
                    && recorded.iter().zip(now).all(|((name, recorded), (other, now))| name == other && self.fit_value(recorded, now))
            }
            (recorded, now) => recorded == now,
        }
    }

    fn fit_pieces(&self, recorded: &str, now: &str) -> bool {
        let Some((first, mut rest)) = self.split(recorded) else { return false };
        let Some(mut now) = now.strip_prefix(first) else { return false };
        while let Some((piece, after)) = self.split(rest) {
            match now.find(piece) {
                Some(at) => now = now.get(at + piece.len()..).unwrap_or_default(),
                None => return false,
            }
            rest = after;
        }
        now.ends_with(rest)
    }

    /// What is before the first mark, and what is after it; none if there is none.
    fn split<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        self.0.iter().filter_map(|mark| text.split_once(mark.as_str())).min_by_key(|(before, _)| before.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_secret_was_cut_any_text_fits_and_nowhere_else() {
        let marks = Marks::of(&["user".into(), "key".into()]);
        assert!(marks.fit("/[secret user]/bin/[secret key]", "/srv/bin/abc"));
        assert!(marks.fit("/[secret user]/bin", "/[secret user]/bin"));
        assert!(!marks.fit("/[secret user]/bin", "/srv/lib"));
        assert!(!marks.fit("/[secret other]/bin", "/srv/bin"));
        assert!(!marks.fit("a", "b"));
        assert!(!Marks::default().fit("/[secret user]/bin", "/srv/bin"));
        let value = |text: &str| serde_json::json!({ "args": [text], "mode": 3 });
        assert!(marks.fit_value(&value("-[secret key]"), &value("-x")));
        assert!(!marks.fit_value(&value("-[secret key]"), &value("x")));
    }
}
