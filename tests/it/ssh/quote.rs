//! Words for a shell, read by real ones.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use muster::link::quote::quote;

use super::sshd::program;

/// Random numbers enough for a test.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn every_shell_reads_a_quoted_word_as_it_was() {
    const SPECIAL: &[u8] = b"'\"\\$`!*?[]{}()<>|&;#~=%^ \t\r\n-\xff\xc3\xa9\x01\x7f";
    let mut random = Random(7);
    let mut words: Vec<Vec<u8>> = vec![Vec::new(), b"-n".into(), b"--".into(), b"''".into(), b"a'".into(), b"'\\''".into()];
    words.extend((1..=255).map(|byte| vec![byte]));
    for _ in 0..3_000 {
        let byte = |random: &mut Random| match random.below(2) {
            0 => SPECIAL[random.below(SPECIAL.len() as u64) as usize],
            _ => 1 + random.below(255) as u8,
        };
        words.push((0..random.below(24)).map(|_| byte(&mut random)).collect());
    }
    for shell in [&["dash"][..], &["busybox", "sh"], &["bash"], &["bash", "--posix"]] {
        let Some(program) = program(shell[0]) else { continue };
        for locale in ["C", "C.UTF-8"] {
            for some in words.chunks(1_000) {
                let mut line = b"printf '%s\\0'".to_vec();
                for word in some {
                    line.push(b' ');
                    line.extend(quote(word).unwrap());
                }
                let mut run = Command::new(&program);
                run.args(&shell[1..]).arg("-c").arg(OsStr::from_bytes(&line)).env("LC_ALL", locale);
                let expected: Vec<u8> = some.iter().flat_map(|word| [word.as_slice(), b"\0"].concat()).collect();
                assert!(run.output().unwrap().stdout == expected, "{shell:?} {locale}");
            }
        }
    }
}
