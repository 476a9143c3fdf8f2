//! An `agent.jar`, read before it is given to machines: which Remoting it is, and which Java runs it.
//!
//! It comes from a controller and is not believed: what is looked at is bounded, and nothing of it is run here. Two entries are read, the
//! manifest and the beginning of the main class; the directory of the archive is walked where it lies, so that it takes no memory however
//! long it is. What only an archive of more than 4 GiB needs is refused.

use std::fmt;
use std::io::Read as _;

use flate2::read::DeflateDecoder;

use crate::limits::{JAR_MANIFEST_BYTES_MAX, REMOTING_VERSION_BYTES_MAX};
use crate::names::Digest;

/// What is known of an `agent.jar`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentJar {
    /// The sha256 of its bytes.
    pub digest: Digest,
    /// The Remoting that it holds.
    pub remoting: Remoting,
    java: u16,
}

/// A version of Remoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remoting {
    text: Box<str>,
    first: u32,
}

/// Why bytes are no `agent.jar` that can be used. It follows `the agent.jar of the controller …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JarError {
    /// It can not be read as an archive.
    #[error("is no whole archive: {0}")]
    Archive(&'static str),
    /// An entry that is needed is not there.
    #[error("has no `{0}`")]
    Missing(String),
    /// The manifest does not say what it must.
    #[error("has a manifest without a usable `{0}`")]
    Manifest(&'static str),
    /// The main class is none, or for a Java that is not known.
    #[error("has a main class that is none: {0}")]
    Class(&'static str),
}

/// The oldest Java whose launcher reads a file of arguments, without which a secret would be in the list of processes.
const JAVA_MIN: u16 = 9;

/// Since which Jenkins its agents need which Java, whatever their jar could do with: classes of the controller go to them too.
const JAVA_OF_JENKINS: [((u32, u32), u16); 3] = [((2, 357), 11), ((2, 463), 17), ((2, 545), 21)];

/// The first Remoting whose `java -jar agent.jar` knows `-url`, `-name` and `-webSocket`. Before, only its other main class did.
const ONE_ENTRY: u32 = 3176;
/// The first Remoting that speaks WebSocket.
const WEBSOCKET: u32 = 4;
/// Where the versions that count commits begin; those before were numbered from 1 to 4.
const COMMITS: u32 = 1000;

impl AgentJar {
    /// Reads one.
    ///
    /// # Errors
    /// Why it is none that can be used.
    pub fn read(bytes: &[u8]) -> Result<Self, JarError> {
        let manifest = entry(bytes, "META-INF/MANIFEST.MF", JAR_MANIFEST_BYTES_MAX)?;
        let manifest = String::from_utf8(manifest).map_err(|_| JarError::Manifest("text"))?;
        let remoting = attribute(&manifest, "Version").and_then(|text| Remoting::parse(&text)).ok_or(JarError::Manifest("Version"))?;
        let main = attribute(&manifest, "Main-Class").filter(|name| is_class_name(name)).ok_or(JarError::Manifest("Main-Class"))?;
        let class = entry(bytes, &format!("{}.class", main.replace('.', "/")), CLASS_HEAD_BYTES)?;
        Ok(Self { digest: Digest::of(bytes), remoting, java: java_of(&class)? })
    }

    /// The oldest Java, by its major version, that can run it as an agent of a controller of this version (`2.452.2`, say). Of a controller
    /// whose version can not be read, only what the jar itself needs is known.
    pub fn java_for(&self, controller: &str) -> u16 {
        let mut numbers = controller.split('.').map(|part| part.parse::<u32>().ok());
        let version = numbers.next().flatten().zip(numbers.next().flatten());
        let needs = |(since, java): &((u32, u32), u16)| version.filter(|version| version >= since).map(|_| *java);
        let of_jenkins = JAVA_OF_JENKINS.iter().filter_map(needs).max().unwrap_or(JAVA_MIN);
        self.java.max(of_jenkins).max(JAVA_MIN)
    }
}

impl Remoting {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let fits = text.len() <= REMOTING_VERSION_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        let first = text.split(['.', '-']).next()?.parse().ok()?;
        fits.then(|| Self { text: text.into(), first })
    }

    /// Whether `java -jar agent.jar` takes the controller's URL and the node's name, and connects over WebSocket.
    pub(super) fn has_one_entry(&self) -> bool {
        self.first >= ONE_ENTRY
    }

    /// Whether it can connect over WebSocket at all.
    pub(super) fn has_websocket(&self) -> bool {
        self.first >= COMMITS || self.first == WEBSOCKET
    }
}

impl fmt::Display for Remoting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// What of a class is read: its mark, and the version of its format.
const CLASS_HEAD_BYTES: usize = 8;
/// The format of Java 1.1; each later Java has the next number.
const CLASS_MAJOR_BEFORE: u16 = 44;

fn java_of(class: &[u8]) -> Result<u16, JarError> {
    let rest = class.strip_prefix(b"\xca\xfe\xba\xbe").ok_or(JarError::Class("its mark is missing"))?;
    let [_, _, high, low] = rest else { return Err(JarError::Class("it is cut off")) };
    let java = u16::from_be_bytes([*high, *low]).checked_sub(CLASS_MAJOR_BEFORE).filter(|java| (1..1000).contains(java));
    java.ok_or(JarError::Class("its format is of no Java"))
}

fn is_class_name(name: &str) -> bool {
    !name.is_empty()
        && name.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$')))
}

/// An attribute of a manifest's main section. A line that begins with a blank goes on with the one before.
fn attribute(manifest: &str, name: &str) -> Option<String> {
    let mut value: Option<String> = None;
    for line in manifest.lines().take_while(|line| !line.is_empty()) {
        match (&mut value, line.strip_prefix(' ')) {
            (Some(value), Some(more)) => value.push_str(more),
            (Some(_), None) => break,
            (None, Some(_)) => {}
            (None, None) => {
                let found = line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name));
                value = found.map(|(_, value)| value.to_owned());
            }
        }
    }
    value
}

const END_MARK: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const ENTRY_MARK: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const LOCAL_MARK: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: usize = 30;
const COMMENT_BYTES_MAX: usize = 0xffff;

/// The first bytes of an entry, as many as are wanted at most.
fn entry(archive: &[u8], name: &str, bytes_max: usize) -> Result<Vec<u8>, JarError> {
    let cut = || JarError::Archive("it is cut off");
    // The end may be followed by a comment, so it is looked for backwards.
    let from = archive.len().saturating_sub(END_BYTES + COMMENT_BYTES_MAX);
    let tail = archive.get(from..).unwrap_or_default();
    let is_end = |at: &usize| tail.get(*at..).is_some_and(|rest| rest.starts_with(END_MARK) && rest.len() >= END_BYTES);
    let end = (0..tail.len().saturating_sub(END_BYTES - 1)).rev().find(is_end).ok_or(JarError::Archive("its directory is not found"))?;
    let end = tail.get(end..).ok_or_else(cut)?;
    let mut at = u32_at(end, 16).ok_or_else(cut)?;
    for _ in 0..u16_at(end, 10).ok_or_else(cut)? {
        let record = archive.get(at..).filter(|rest| rest.starts_with(ENTRY_MARK)).ok_or(JarError::Archive("its directory is damaged"))?;
        let length = |field| u16_at(record, field).map(usize::from).ok_or_else(cut);
        let (name_bytes, extra_bytes, comment_bytes) = (length(28)?, length(30)?, length(32)?);
        if record.get(ENTRY_BYTES..ENTRY_BYTES + name_bytes).ok_or_else(cut)? == name.as_bytes() {
            return content(archive, record, bytes_max);
        }
        at += ENTRY_BYTES + name_bytes + extra_bytes + comment_bytes;
    }
    Err(JarError::Missing(name.into()))
}

fn content(archive: &[u8], record: &[u8], bytes_max: usize) -> Result<Vec<u8>, JarError> {
    let cut = || JarError::Archive("an entry is cut off");
    let (method, packed, begin) =
        (u16_at(record, 10).ok_or_else(cut)?, u32_at(record, 20).ok_or_else(cut)?, u32_at(record, 42).ok_or_else(cut)?);
    let local = archive.get(begin..).filter(|rest| rest.starts_with(LOCAL_MARK)).ok_or_else(cut)?;
    let length = |field| u16_at(local, field).map(usize::from).ok_or_else(cut);
    let start = LOCAL_BYTES + length(26)? + length(28)?;
    let packed = local.get(start..).and_then(|rest| rest.get(..packed)).ok_or_else(cut)?;
    let mut read = Vec::new();
    match method {
        0 => packed.take(bytes_max as u64).read_to_end(&mut read),
        8 => DeflateDecoder::new(packed).take(bytes_max as u64).read_to_end(&mut read),
        _ => return Err(JarError::Archive("an entry is packed in a way that Java does not know")),
    }
    .map_err(|_| JarError::Archive("an entry can not be unpacked"))?;
    Ok(read)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use proptest::prelude::*;

    use super::*;

    const MANIFEST: &str =
        "Manifest-Version: 1.0\r\nMain-Class: hudson.remoting.Launcher\r\nVersion: 3206.vb_15dcf73f6a_9\r\n\r\nName: x\r\nVersion: 1.0\r\n";

    fn archive(entries: &[(&str, &[u8])], packed: bool) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, content) in entries {
            let mut data = content.to_vec();
            if packed {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(content).unwrap();
                data = encoder.finish().unwrap();
            }
            let number = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
            let method = if packed { 8 } else { 0 };
            let common =
                [&[10, 0, 0, 0, method, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &number(data.len()), &number(content.len()), &number(name.len())]
                    .concat();
            directory.extend([b"PK\x01\x02\x0a\x00", common.as_slice(), &[0; 10], &number(out.len()), name.as_bytes()].concat());
            out.extend([b"PK\x03\x04", common.as_slice(), name.as_bytes(), &data].concat());
        }
        let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
        let (at, length) = (u32::try_from(out.len()).unwrap().to_le_bytes(), u32::try_from(directory.len()).unwrap().to_le_bytes());
        out.extend([directory.as_slice(), b"PK\x05\x06\x00\x00\x00\x00", &count, &count, &length, &at, &[0, 0]].concat());
        out
    }

    fn jar(manifest: &str, class: &[u8]) -> Vec<u8> {
        archive(&[("META-INF/", b""), ("META-INF/MANIFEST.MF", manifest.as_bytes()), ("hudson/remoting/Launcher.class", class)], true)
    }

    fn class(major: u8) -> Vec<u8> {
        [&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, major][..], &[7; 500]].concat()
    }

    #[test]
    fn a_jar_says_its_remoting_and_its_java_by_its_main_class() {
        for (major, java) in [(55, 11), (61, 17), (65, 21)] {
            let bytes = jar(MANIFEST, &class(major));
            let read = AgentJar::read(&bytes).unwrap();
            assert_eq!((read.java_for("unknown"), read.remoting.to_string().as_str()), (java, "3206.vb_15dcf73f6a_9"));
            assert_eq!(read.digest, Digest::of(&bytes));
        }
        let stored = archive(&[("META-INF/MANIFEST.MF", MANIFEST.as_bytes()), ("hudson/remoting/Launcher.class", &class(55))], false);
        assert_eq!(AgentJar::read(&stored).unwrap().java_for(""), 11);
        let commented = [jar(MANIFEST, &class(55)), vec![b'P'; 3000]].concat();
        assert!(AgentJar::read(&commented).is_ok());
    }

    #[test]
    fn the_controller_may_need_a_later_java_than_the_jar_and_a_file_of_arguments_than_both() {
        let old = AgentJar::read(&jar(MANIFEST, &class(52))).unwrap();
        let needed =
            ["2.346.3", "2.356", "2.357", "2.372", "2.452.2", "2.462.3", "2.463", "2.479.1", "2.541.3", "2.545", "2.555.1", "3.0", "x"];
        let javas = [9, 9, 11, 11, 11, 11, 17, 17, 17, 21, 21, 21, 9];
        assert_eq!(needed.map(|version| old.java_for(version)), javas);
        assert_eq!(AgentJar::read(&jar(MANIFEST, &class(69))).unwrap().java_for("2.452.2"), 25);
    }

    #[test]
    fn which_words_a_remoting_understands_goes_by_its_version() {
        let known = |text: &str| Remoting::parse(text).map(|remoting| (remoting.has_websocket(), remoting.has_one_entry()));
        assert_eq!(known("3.29"), Some((false, false)));
        assert_eq!(known("4.14-SNAPSHOT"), Some((true, false)));
        assert_eq!(known("3063.v26e24490f041"), Some((true, false)));
        assert_eq!(known("3174.v2c9e67f8f9df"), Some((true, false)));
        assert_eq!(known("3176.v207ec082a_8c0"), Some((true, true)));
        assert_eq!(known("3206.3208.v409508a_675ff"), Some((true, true)));
        for bad in ["", "v1", "1 2", "1\u{1b}[2J", &"1".repeat(REMOTING_VERSION_BYTES_MAX + 1)] {
            assert_eq!(known(bad), None);
        }
    }

    #[test]
    fn a_value_of_a_manifest_may_go_on_in_the_next_line() {
        let broken =
            MANIFEST.replace("hudson.remoting.Launcher", "hudson.remo\r\n ting.Launcher").replace("Version: 3206", "version: 3206");
        let read = AgentJar::read(&jar(&broken, &class(55))).unwrap();
        assert_eq!((read.remoting.to_string().as_str(), read.java_for("")), ("3206.vb_15dcf73f6a_9", 11));
    }

    #[test]
    fn what_is_no_agent_jar_is_told_apart() {
        let told = |bytes: &[u8]| AgentJar::read(bytes).unwrap_err().to_string();
        assert_eq!(told(b""), "is no whole archive: its directory is not found");
        assert_eq!(told(&jar(MANIFEST, &class(55))[..400]), "is no whole archive: its directory is not found");
        assert_eq!(told(&archive(&[], true)), "has no `META-INF/MANIFEST.MF`");
        assert_eq!(
            told(&jar("Manifest-Version: 1.0\r\n\r\nVersion: 3206.v1\r\n", &class(55))),
            "has a manifest without a usable `Version`"
        );
        assert_eq!(
            told(&jar("Version: 3206.v1\r\nMain-Class: ../../etc/passwd\r\n", &class(55))),
            "has a manifest without a usable `Main-Class`"
        );
        assert_eq!(told(&jar(&MANIFEST.replace("Launcher", "Other"), &class(55))), "has no `hudson/remoting/Other.class`");
        assert_eq!(told(&jar(MANIFEST, b"<html>")), "has a main class that is none: its mark is missing");
        assert_eq!(told(&jar(MANIFEST, &class(44))), "has a main class that is none: its format is of no Java");
        assert_eq!(told(&jar(MANIFEST, &class(55)[..6])), "has a main class that is none: it is cut off");
        let long = format!("{MANIFEST}{}", "x".repeat(JAR_MANIFEST_BYTES_MAX * 2));
        assert!(AgentJar::read(&jar(&long, &class(55))).is_ok(), "what is said at the beginning is enough");
    }

    proptest! {
        #[test]
        fn a_damaged_jar_is_refused_and_never_more(at in 0_usize..498, byte in any::<u8>(), cut in 0_usize..498) {
            let mut bytes = jar(MANIFEST, &class(55));
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            let _ = AgentJar::read(&bytes);
            bytes.truncate(cut);
            let _ = AgentJar::read(&bytes);
        }
    }
}
