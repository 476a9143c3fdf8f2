//! The secret of a node, and the jar.

use reqwest::Method;
use serde_json::json;

use super::{Ask as _, Caller, DUMB};
use crate::jenkins::config::NodeConfig;
use crate::jenkins::jar::JAR_BYTES;
use crate::jenkins::{Jenkins, Plan, Version};

#[tokio::test]
async fn a_jnlp_has_the_secret_first_and_the_configured_root_last() {
    let jenkins = Jenkins::start(Plan::default().root_url_is("https://ci.example/")).await;
    let muster = Caller::muster(&jenkins);
    muster.create("n1", json!({})).await.is(302);
    let secret = jenkins.node("n1").unwrap().secret;
    assert!(secret.len() == 64 && secret.bytes().all(|byte| b"0123456789abcdef".contains(&byte)));
    let jnlp = muster.get("computer/n1/jenkins-agent.jnlp").await;
    assert_eq!(
        jnlp.is(200).text,
        format!(
            "<jnlp><application-desc><argument>{secret}</argument><argument>n1</argument><argument>-webSocket</argument><argument>-workDir\
             </argument><argument>/srv/agent</argument><argument>-internalDir</argument><argument>remoting</argument><argument>-url</argument>\
             <argument>https://ci.example/</argument></application-desc></jnlp>"
        )
    );
    assert_eq!(jnlp.header("content-type").unwrap(), "application/x-java-jnlp-file");
    assert_eq!(muster.get("computer/n1/slave-agent.jnlp").await.text, jnlp.text);
    muster.get("computer/n2/jenkins-agent.jnlp").await.is(404);
    muster.get("computer/(built-in)/jenkins-agent.jnlp").await.is(404);
    Caller::anonymous(&jenkins).get("computer/n1/jenkins-agent.jnlp").await.is(403);
}

#[tokio::test]
async fn a_node_without_a_launcher_has_a_jnlp_too() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    muster.post("computer/doCreateItem", &[("name", "n1"), ("type", DUMB), ("json", "{}")]).await.is(302);
    let jnlp = muster.get("computer/n1/jenkins-agent.jnlp").await;
    assert!(jnlp.is(200).text.contains("<argument>n1</argument><argument>-url</argument>"));
}

#[tokio::test]
async fn the_secret_depends_on_the_name_alone() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let muster = Caller::muster(&jenkins);
    let read = async || {
        let jnlp = muster.get("computer/n1/jenkins-agent.jnlp").await.text;
        jnlp.split(['<', '>']).nth(6).unwrap().to_owned()
    };
    jenkins.put(NodeConfig::new("n1"));
    let first = read().await;
    muster.write_config("n1", "<slave><name>n1</name><numExecutors>3</numExecutors></slave>").await.is(200);
    jenkins.restart().await;
    assert_eq!(read().await, first);
    jenkins.delete("n1");
    muster.create("n1", json!({})).await.is(302);
    assert_eq!((read().await, jenkins.secret("n1")), (first.clone(), first));
    assert_ne!(jenkins.secret("n2"), jenkins.secret("n1"));
}

#[tokio::test]
async fn an_encrypted_jnlp_tells_everybody_which_nodes_there_are() {
    let jenkins = Jenkins::start(Plan::default()).await;
    jenkins.put(NodeConfig::new("n1"));
    let anonymous = Caller::anonymous(&jenkins);
    let hidden = anonymous.get("computer/n1/jenkins-agent.jnlp?encrypt=true").await;
    assert!(!hidden.is(200).text.contains(&jenkins.secret("n1")) && !hidden.text.contains("jnlp"));
    let missing = anonymous.get("computer/n2/jenkins-agent.jnlp?encrypt=true").await;
    assert_eq!(missing.is(404).text.len(), 8_000);
}

#[tokio::test]
async fn the_jar_is_for_everybody_and_not_sent_again_to_who_has_it() {
    let jenkins = Jenkins::start(Plan::default()).await;
    let anonymous = Caller::anonymous(&jenkins);
    let first = anonymous.get("jnlpJars/agent.jar").await;
    assert_eq!(first.is(200).header("content-type").unwrap(), "application/java-archive");
    assert_eq!((first.header("accept-ranges").unwrap().as_str(), first.header("etag")), ("bytes", None));
    assert_eq!((first.header("content-length").unwrap(), jenkins.agent_jar().len()), (JAR_BYTES.to_string(), JAR_BYTES));
    let ask =
        async |method: Method, name: &str, value: &str| anonymous.request(method, "jnlpJars/agent.jar").header(name, value).ask().await;
    let modified = first.header("last-modified").unwrap();
    let again = ask(Method::GET, "if-modified-since", &modified).await;
    assert_eq!((again.is(304).text.as_str(), again.header("last-modified").unwrap()), ("", modified.clone()));
    ask(Method::GET, "if-modified-since", "Thu, 01 Jan 1970 00:00:00 GMT").await.is(200);
    let head = ask(Method::HEAD, "accept", "*/*").await;
    assert_eq!((head.is(200).text.as_str(), head.header("content-length").unwrap()), ("", JAR_BYTES.to_string()));
    let part = ask(Method::GET, "range", "bytes=0-3").await;
    assert_eq!((part.is(206).text.as_str(), part.header("content-range").unwrap()), ("PK\u{3}\u{4}", format!("bytes 0-3/{JAR_BYTES}")));
    for alias in ["slave.jar", "remoting.jar"] {
        assert_eq!(anonymous.get(&format!("jnlpJars/{alias}")).await.is(200).text, first.text);
    }
    for unknown in ["other.jar", ""] {
        anonymous.get(&format!("jnlpJars/{unknown}")).await.is(500);
    }
    jenkins.restart().await;
    let later = ask(Method::GET, "if-modified-since", &modified).await;
    assert_eq!(later.is(200).text, first.text);
}

#[tokio::test]
async fn each_version_has_a_jar_of_its_own() {
    let (old, new) = (Jenkins::start(Plan::default().version(Version::V2_372)).await, Jenkins::start(Plan::default()).await);
    assert_ne!(old.agent_jar(), new.agent_jar());
}
