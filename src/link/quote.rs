//! What a POSIX shell reads: words, each as it is.

/// A text holds a NUL, which no word of a command can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a word of a command can not hold a NUL")]
pub struct NulError;

/// Quotes bytes as one word for a POSIX shell, whatever they are.
///
/// # Errors
/// If they hold a NUL.
pub fn quote(text: &[u8]) -> Result<Vec<u8>, NulError> {
    let mut quoted = Vec::with_capacity(text.len() + 2);
    quoted.push(b'\'');
    for byte in text {
        match byte {
            0 => return Err(NulError),
            // Nothing is special within single quotes but the quote that ends them.
            b'\'' => quoted.extend_from_slice(br"'\''"),
            _ => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    Ok(quoted)
}

/// A command for a POSIX shell: a program and its arguments, each as it is.
///
/// # Errors
/// If one of them holds a NUL.
pub fn command(words: &[&str]) -> Result<String, NulError> {
    let mut line = Vec::new();
    for word in words {
        if !line.is_empty() {
            line.push(b' ');
        }
        line.extend(quote(word.as_bytes())?);
    }
    // Quoting adds ASCII between characters, so this is what it was: UTF-8.
    String::from_utf8(line).map_err(|_| NulError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_nul_is_no_word() {
        assert_eq!(quote(b"a\0b"), Err(NulError));
        assert_eq!(command(&["a", "\0"]), Err(NulError));
        assert_eq!(command(&["a b", "", "it's", "\u{fc}"]).unwrap(), "'a b' '' 'it'\\''s' '\u{fc}'");
        assert_eq!(command(&[]).unwrap(), "");
    }
}
