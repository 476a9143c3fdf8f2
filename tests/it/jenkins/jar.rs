//! What the controller serves as `agent.jar`: an archive that Python runs, so that no test needs Java.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::Version;

/// The size of the real one of 2.452.2. That of 2.372 is not known.
pub(crate) const JAR_BYTES: usize = 1_369_595;

/// What stands for a JVM. `DIR/java -jar agent.jar …` runs what is in the archive.
const JAVA: &str = r#"#!/bin/sh
# Stands for Java: says its version, or runs an archive that Python can run.
version='@VERSION@'
while [ $# -gt 0 ]; do
  case $1 in
    -XshowSettings*)
      printf '    java.home = /opt/java\n    java.specification.version = %s\n    java.version = %s\n' "${version%%.*}" "$version" >&2
      shift ;;
    -version)
      printf 'openjdk version "%s" 2025-04-15\nOpenJDK Runtime Environment (build %s+6)\n' "$version" "$version" >&2
      exit 0 ;;
    --version)
      printf 'openjdk %s 2025-04-15\nOpenJDK Runtime Environment (build %s+6)\n' "$version" "$version"
      exit 0 ;;
    -jar | -cp | -classpath)
      jar=$2
      shift 2
      if ! [ -r "$jar" ]; then
        echo "Error: Unable to access jarfile $jar" >&2
        exit 1
      fi
      exec '@PYTHON@' -S -E "$jar" "$@" ;;
    @*) exec '@PYTHON@' -S -E "$0.py" "$@" ;;
    -*) shift ;;
    *)
      echo "Error: Could not find or load main class $1" >&2
      exit 1 ;;
  esac
done
exit 1
"#;

/// Makes the archive. Its agent takes this long to start, and pauses this long before it looks for a controller that it lost.
pub(super) fn agent_jar(version: Version, start: Duration, pause: Duration) -> Vec<u8> {
    let (remoting, knows_url) = match version {
        Version::V2_372 => ("3063.v26e24490f041", "no"),
        Version::V2_452_2 => ("3206.vb_15dcf73f6a_9", "yes"),
    };
    let program = include_str!("agent.py")
        .replace("@VERSION@", remoting)
        .replace("@KNOWS_URL@", knows_url)
        .replace("@START_SECONDS@", &start.as_secs_f64().to_string())
        .replace("@PAUSE_SECONDS@", &pause.as_secs_f64().to_string());
    let manifest = format!("Manifest-Version: 1.0\r\nMain-Class: hudson.remoting.Launcher\r\nVersion: {remoting}\r\n\r\n");
    // Both are made for Java 11, as the real ones are.
    let class = [0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 55];
    let entries =
        [("META-INF/MANIFEST.MF", manifest.as_bytes()), ("hudson/remoting/Launcher.class", &class), ("__main__.py", program.as_bytes())];
    let empty = archive(&entries, &[]).len();
    archive(&entries, noise(JAR_BYTES - empty))
}

/// Bytes that do not compress, the same ones every time.
fn noise(count: usize) -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    &MADE.get_or_init(make_noise)[..count]
}

fn make_noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(JAR_BYTES + 8);
    while out.len() < JAR_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out
}

/// An archive with nothing compressed, and with bytes that belong to no entry.
fn archive(entries: &[(&str, &[u8])], padding: &[u8]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        // Version 1.0, no flags, stored, 1980-01-01.
        let mut common = vec![10, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32(content).to_le_bytes());
        common.extend([number(content.len()), number(content.len()), number(name.len())].concat());
        directory.extend(b"PK\x01\x02\x0a\x00");
        directory.extend(&common);
        // No comment, one disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(number(out.len()));
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(*content);
    }
    out.extend(padding);
    let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
    let (at, length) = (u32::try_from(out.len()).unwrap().to_le_bytes(), u32::try_from(directory.len()).unwrap().to_le_bytes());
    out.extend(&directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([count, count].concat());
    out.extend([length, at].concat());
    out.extend([0, 0]);
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    !bytes.iter().fold(u32::MAX, step)
}

/// Writes a program `java` of a version such as `17.0.15` into a directory; its path.
pub(crate) fn java(directory: &Path, version: &str) -> PathBuf {
    let path = directory.join("java");
    let text = JAVA.replace("@VERSION@", version).replace("@PYTHON@", python().to_str().unwrap());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.join("java.py"), include_str!("java.py")).unwrap();
    path
}

/// Where Python is: the program, and not a script that looks for it at every start.
pub(crate) fn python() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let ask = |program: &str| -> io::Result<PathBuf> {
            let said = Command::new(program).args(["-c", "import sys; print(sys.executable)"]).stdin(Stdio::null()).output()?;
            Ok(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()))
        };
        ask("python3").expect("these tests need Python 3")
    })
}
