//! Files of arguments, with the Java of this machine, if it has one.

use std::path::Path;
use std::process::{Command, Output};

use muster::controller::jenkins::jar::{AgentJar, JarError};
use muster::controller::jenkins::start::{ArgumentFile, Start, java_major};
use tempfile::TempDir;

use crate::jenkins::{Jenkins, Plan, Version};

/// A program that prints its arguments, one in a line between brackets.
const ECHO: &str = "public static void main(String[] a) { for (String x : a) System.out.println('[' + x + ']'); }";

/// Runs a program of Java's; none if there is none here.
#[expect(clippy::disallowed_methods, reason = "whether this is CI is told by the environment")]
fn run(program: &str, arguments: &[&str], directory: &Path) -> Option<Output> {
    match Command::new(program).args(arguments).current_dir(directory).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "there is no `{program}` here, and CI is to have one");
            eprintln!("passed over: there is no `{program}` here");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// A jar with the two main classes of Remoting, each of which prints its name and arguments; none without a Java that makes one.
fn jar(directory: &Path, remoting: &str) -> Option<()> {
    let write = |path: &str, text: String| {
        let path = directory.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let class = |package: &str, name: &str| {
        format!(
            "package {package}; public class {name} {{ {} }}",
            ECHO.replace("{ for", &format!("{{ System.out.println(\"{name}\"); for"))
        )
    };
    write("hudson/remoting/Launcher.java", class("hudson.remoting", "Launcher"));
    write("hudson/remoting/jnlp/Main.java", class("hudson.remoting.jnlp", "Main"));
    write("manifest", format!("Main-Class: hudson.remoting.Launcher\nVersion: {remoting}\n"));
    let sources = ["hudson/remoting/Launcher.java", "hudson/remoting/jnlp/Main.java"];
    let made = run("javac", &[&["--release", "11"][..], &sources].concat(), directory)?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made =
        run("jar", &["cfm", "agent.jar", "manifest", "hudson/remoting/Launcher.class", "hudson/remoting/jnlp/Main.class"], directory)?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(())
}

#[test]
fn java_reads_from_a_file_of_arguments_what_was_written_there() {
    let temporary = TempDir::new().unwrap();
    // What is special in such a file, in a shell, and to Java's launcher.
    let directory = temporary.path().join("a b\\n \"c\" 'd' #e @f $HOME %p ;");
    std::fs::create_dir(&directory).unwrap();
    let (path, secret) = (directory.to_str().unwrap(), "0a".repeat(32));
    let newer = "Launcher\n[-url]\n[http://h:1/?a=b#c]\n[-secret]\n[SECRET]\n[-name]\n[n1]\n[-webSocket]\n[-workDir]\n[PATH]\n";
    let older = "Main\n[-headless]\n[-url]\n[http://h:1/?a=b#c]\n[-webSocket]\n[-workDir]\n[PATH]\n[SECRET]\n[n1]\n";
    for (remoting, expected) in [("3206.vb_15dcf73f6a_9", newer), ("3063.v26e24490f041", older)] {
        let Some(()) = jar(&directory, remoting) else { return };
        let jar = directory.join("agent.jar");
        let read = AgentJar::read(&std::fs::read(&jar).unwrap()).unwrap();
        assert_eq!((read.java_for("2.452.2"), read.remoting.to_string().as_str()), (11, remoting));
        let node = "n1".parse().unwrap();
        let start = Start {
            jar: jar.to_str().unwrap(),
            remoting: &read.remoting,
            url: "http://h:1/?a=b#c",
            node: &node,
            secret: &secret,
            work_dir: path,
        };
        std::fs::write(directory.join("arguments"), ArgumentFile::new(&start).unwrap().as_str()).unwrap();
        let Some(said) = run("java", &["@arguments"], &directory) else { return };
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(String::from_utf8(said.stdout).unwrap(), expected.replace("SECRET", &secret).replace("PATH", path));
    }
}

#[test]
fn the_java_of_this_machine_says_its_version() {
    let Some(said) = run("java", &["-version"], Path::new("/")) else { return };
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    assert!(java_major(&said).is_some_and(|major| major >= 8), "{said}");
}

#[tokio::test]
async fn the_jar_of_each_jenkins_says_what_starts_it() {
    for (version, remoting) in [(Version::V2_372, "3063.v26e24490f041"), (Version::V2_452_2, "3206.vb_15dcf73f6a_9")] {
        let jenkins = Jenkins::start(Plan::default().version(version)).await;
        let read = AgentJar::read(jenkins.agent_jar()).unwrap();
        assert_eq!((read.remoting.to_string().as_str(), read.java_for(version.text())), (remoting, 11));
        assert!(matches!(AgentJar::read(&jenkins.agent_jar()[..1000]), Err(JarError::Archive(_))));
    }
}
