//! Every bound, in one place, with its unit last in its name.
//!
//! A bound that an admin may move has its default and its ceiling here, and its setting in `config` or in the label's policy.

use std::time::Duration;

/// Bytes in a name of any kind. 63 is what a host name's part may have.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes in an id, which is hexadecimal: 16 bytes' worth.
pub const ID_BYTES: usize = 32;
/// Bytes in a path that an agent, a module or a bundle names.
pub const PATH_BYTES_MAX: usize = 4096;

// HTTP.

/// Bytes in the body of any request that is not an upload.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// How long a request that is not an upload, a stream or a session may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an upload may pause between two pieces before it is given up.
pub const UPLOAD_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long whoever is sent contents may take for one piece before no more is sent.
pub const READER_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Rows in one page of a listing.
pub const PAGE_ROWS_MAX: u32 = 500;
/// Rows in one page of a listing, unless the caller says.
pub const PAGE_ROWS: u32 = 100;

// Registration.

/// Labels that one agent carries.
pub const AGENT_LABELS_MAX: usize = 32;
/// Attributes that one agent gives of itself.
pub const AGENT_ATTRIBUTES_MAX: usize = 64;
/// Bytes in one attribute's value, an image's id, an address or an instance.
pub const AGENT_TEXT_BYTES_MAX: usize = 1024;
/// Executors of one agent.
pub const AGENT_EXECUTORS_MAX: u32 = 1000;
/// Agents that one server holds, alive.
pub const AGENTS_MAX: usize = 100_000;
/// How often an agent polls, unless the configuration says.
pub const POLL_INTERVAL: Duration = Duration::from_secs(30);
/// The shortest interval between polls that the configuration may set.
pub const POLL_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// The longest interval between polls that the configuration may set.
pub const POLL_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// By how much of itself an interval is made shorter or longer at random, so that agents do not return together.
pub const POLL_JITTER_SHARE: f64 = 0.2;
/// After how many intervals without a poll an agent is lost.
pub const LEASE_INTERVALS: u32 = 3;
/// How long a lost agent is kept before it is gone, unless the configuration says. DynaSlave's was 30 minutes.
pub const LOST_KEPT: Duration = Duration::from_secs(30 * 60);
/// How long a lost agent of the DynaSlave plugin's URL is kept, unless the configuration says: the plugin's own time.
pub const DYNASLAVE_IDLE: Duration = Duration::from_secs(30 * 60);
/// Networks that may call the URLs of one compatibility section.
pub const COMPAT_NETWORKS_MAX: usize = 256;
/// Labels that may be asked for at the URLs of one compatibility section.
pub const COMPAT_LABELS_MAX: usize = 256;
/// How often heartbeats are written to the store.
pub const HEARTBEAT_FLUSH_INTERVAL: Duration = Duration::from_secs(10);

/// How often leases and pauses are looked at, at the latest; more often when agents poll more often.
pub const RECONCILE_INTERVAL_MAX: Duration = Duration::from_secs(1);

// Uploads.

/// Bundles that an image may say were baked into it.
pub const BAKED_MAX: usize = 32;
/// Differences between two versions of a bundle that are remembered.
pub const DIFFERENCES_KEPT: usize = 256;
/// How long an answer waits for differences that are not known yet.
pub const DIFFERENCES_WAIT_MAX: Duration = Duration::from_secs(10);
/// Callers that are sent contents by HTTP at once. They have turns of their own, so that they keep no agent waiting.
pub const CONTENTS_READERS_MAX: usize = 16;
/// How long it may take to be sent contents by HTTP.
pub const CONTENTS_TIMEOUT: Duration = Duration::from_secs(3600);

/// Bytes in a module.
pub const MODULE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes in a script.
pub const SCRIPT_BYTES_MAX: usize = 256 * 1024;
/// Processor time for reading a script when it arrives.
pub const SCRIPT_CHECK_CPU: Duration = Duration::from_secs(1);
/// Memory for reading a script when it arrives.
pub const SCRIPT_CHECK_MEMORY_MIB: u32 = 64;
/// Bytes of what a module asks for, as its component carries it.
pub const ASKS_BYTES_MAX: usize = 64 * 1024;
/// Bytes that are kept of what a language's tool says while it builds a module.
pub const TOOL_OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Runs that `muster module bench` makes at most.
pub const BENCH_RUNS_MAX: u32 = 100_000;
/// Modules that are compiled at once. Compiling uses every core by itself.
pub const COMPILES_AT_ONCE: usize = 1;
/// Modules that wait for their compilation; more are told to come again.
pub const COMPILES_WAITING_MAX: usize = 16;
/// Processor time that compiling a component may take, in seconds. A Python component takes about 30.
pub const COMPILE_CPU_SECONDS_MAX: u64 = 180;
/// Memory that compiling a component may take.
pub const COMPILE_MEMORY_BYTES_MAX: u64 = 3 * 1024 * 1024 * 1024;
/// How long compiling a component may take, on a machine that has other things to do as well.
pub const COMPILE_TIMEOUT: Duration = Duration::from_secs(600);
/// Components in a path of a bundle. Each is one open directory while the tree is walked.
pub const TREE_DEPTH_MAX: usize = 128;
/// Entries in a bundle.
pub const BUNDLE_ENTRIES_MAX: usize = 1_000_000;
/// Contents in one upload: files of a bundle, and chunks of its large ones.
pub const CHUNKS_MAX: usize = 4_000_000;
/// Compressed bytes of an upload that are verified together.
pub const CONTENTS_VERIFIED_BYTES: usize = 256 * 1024;
/// Bytes in a bundle's manifest.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Manifests that are received at once, and as many that are read from the store: one takes several times its bytes while it is parsed.
pub const MANIFESTS_AT_ONCE: usize = 4;
/// Bytes in one file of a bundle.
pub const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Bytes in one content as it is kept and sent: a file of at most so many is one, a larger one is cut into chunks.
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a chunk, on average.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Bytes that a chunk has at least, unless it is the last of its file.
pub const CHUNK_BYTES_MIN: usize = 64 * 1024;
/// Bytes of compressed contents that are kept together in one file of the store.
pub const SEGMENT_BYTES: usize = 1024 * 1024;
/// Digests in one question which contents the server lacks.
pub const DIGESTS_ASKED_MAX: usize = 50_000;
/// Bytes in one piece of a stream.
pub const PIECE_BYTES: usize = 128 * 1024;
/// How often a machine that only has a shell is asked how what was launched is.
pub const SHELL_LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Bytes that a machine that only has a shell answers to a short question.
pub const SHELL_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Bytes that it answers of a tree, or keeps of one.
pub const SHELL_TREE_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Pushes to it that were cut off one after the other, without one that came to its end.
pub const SHELL_BEGUN_MAX: usize = 64;
/// Bytes in the manifest of a bundle that is brought to it.
pub const SHELL_MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long a poll for steps is kept open while there is none. Less than what proxies cut off.
pub const STEP_POLL_MAX: Duration = Duration::from_secs(25);
/// Steps that wait for a machine that polls, or run there.
pub const STEPS_MAX: usize = 64;
/// Threads on which one push takes what comes.
pub const TAKERS_MAX: usize = 4;
/// Bytes of a push that are taken before the disk begins to write them, while more comes.
pub const TAKEN_BYTES_UNWRITTEN: u64 = 128 * 1024 * 1024;
/// Trees that a destination held before and that are kept beside it.
pub const GENERATIONS_KEPT: usize = 2;
/// Files of one push that are made durable one by one; for more of them, the file system is asked once.
pub const SYNC_FILES_MAX: usize = 64;

// Controllers.

/// Controllers in the configuration.
pub const CONTROLLERS_MAX: usize = 32;
/// How long one request to a controller may take, unless the configuration says.
pub const CONTROLLER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest time that the configuration may let a request to a controller take.
pub const CONTROLLER_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Requests that are under way to one controller at once, unless the configuration says. More of them would queue within Jenkins.
pub const CONTROLLER_REQUESTS_AT_ONCE: usize = 4;
/// The most requests that the configuration may have under way to one controller at once.
pub const CONTROLLER_REQUESTS_AT_ONCE_MAX: usize = 64;
/// Requests to one controller that begin in a second, unless the configuration says.
pub const CONTROLLER_REQUESTS_PER_SECOND: u32 = 20;
/// The most requests to one controller that the configuration may let begin in a second.
pub const CONTROLLER_REQUESTS_PER_SECOND_MAX: u32 = 1000;
/// Bytes in an answer of a controller. The list of 1000 nodes has 849 KB if all of it is asked for.
pub const CONTROLLER_ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes that are read of a controller's page that tells an error. Whole ones have 72 KB.
pub const CONTROLLER_ERROR_BYTES_MAX: usize = 4 * 1024;
/// Characters of a controller's own words that are kept.
pub const CONTROLLER_WORDS_CHARS_MAX: usize = 300;
/// Bytes in the file of a controller's token.
pub const CONTROLLER_TOKEN_BYTES_MAX: u64 = 4 * 1024;
/// Bytes in an `agent.jar`. One has 1.4 MB.
pub const CONTROLLER_JAR_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of an `agent.jar`'s manifest that are read. It begins with what is wanted, and has a few hundred.
pub const JAR_MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Bytes in a version of Remoting: `3206.3208.v409508a_675ff`.
pub const REMOTING_VERSION_BYTES_MAX: usize = 64;
/// How long fetching an `agent.jar` may take.
pub const CONTROLLER_JAR_TIMEOUT: Duration = Duration::from_secs(300);
/// For how long a controller's refusal of its token is not believed: it refuses a good one while it restarts.
pub const CONTROLLER_UNSURE: Duration = Duration::from_secs(60);
/// How long looking at what a controller lets its user do may take. Less than what the request for it may.
pub const CONTROLLER_CHECK_MAX: Duration = Duration::from_secs(20);
/// Bytes in the name of a node. A name of more than 255 is a file's name that can not be.
pub const NODE_NAME_BYTES_MAX: usize = 200;
/// How often a controller's nodes are listed, while nobody waits for one.
pub const NODES_INTERVAL: Duration = Duration::from_secs(15);
/// How often they are listed while somebody waits.
pub const NODES_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause between two lists: of a controller that answers fast, and a little is spent of its time.
pub const NODES_PAUSE_MIN: Duration = Duration::from_millis(200);
/// For how long changes of agents gather before their nodes are looked at.
pub const NODES_GATHER: Duration = Duration::from_millis(100);
/// Nodes of one controller that are changed at once, beside those that are being launched.
pub const NODES_CHANGED_AT_ONCE: usize = 4;
/// How long after a launch a list may tell of what ran before it.
pub const NODE_SETTLE: Duration = Duration::from_millis(500);
/// How long it is waited for that a controller says that a node is online. The time in which the controller is away does not count.
pub const NODE_ONLINE_MAX: Duration = Duration::from_secs(180);
/// How long a node may be offline before the program of an agent that is ready is started again. An agent that lost its controller looks for
/// it by itself every ten seconds.
pub const NODE_OFFLINE_MAX: Duration = Duration::from_secs(60);
/// The longest pause between two such starts.
pub const NODE_RELAUNCH_MAX: Duration = Duration::from_secs(900);
/// How long looking for a Java on a machine may take.
pub const JAVA_LOOK_MAX: Duration = Duration::from_secs(60);
/// For how many seconds builds are waited for before their node is taken from them, unless the policy says.
pub const DRAIN_SECONDS: u32 = 3600;
/// The longest time that a policy may have builds waited for, in seconds.
pub const DRAIN_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// How often a controller is asked what waits there, unless the configuration says.
pub const DEMAND_INTERVAL: Duration = Duration::from_secs(15);
/// The longest interval between two of those questions that the configuration may set.
pub const DEMAND_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The shortest pause between two of them, however many people ask for a label that is not known yet.
pub const DEMAND_PAUSE: Duration = Duration::from_secs(1);
/// After how many intervals without an answer nothing is told any more: a figure that is too old is worse than none.
pub const DEMAND_INTERVALS_KEPT: u32 = 4;
/// How long somebody who asks for a label's demand waits for the first answer.
pub const DEMAND_WAIT_MAX: Duration = Duration::from_secs(10);

// Policies.

/// Bundles, settings or grants of one kind in a policy.
pub const POLICY_ITEMS_MAX: usize = 256;
/// Bytes in one setting's value or one grant.
pub const POLICY_TEXT_BYTES_MAX: usize = 4096;
/// Labels in one policy file.
pub const POLICY_LABELS_MAX: usize = 1000;
/// Memory of a run, unless the policy says, in MiB.
pub const RUN_MEMORY_MIB: u32 = 64;
/// Memory of a run at most, in MiB: what one slot of the pool holds.
pub const RUN_MEMORY_MIB_MAX: u32 = 256;
/// Processor time of a run, unless the policy says, in milliseconds.
pub const RUN_CPU_MS: u32 = 2_000;
/// Processor time of a run at most, in milliseconds.
pub const RUN_CPU_MS_MAX: u32 = 60_000;
/// Wall-clock time of a run, host calls included, unless the policy says, in seconds.
pub const RUN_SECONDS: u32 = 600;
/// Wall-clock time of a run at most, in seconds.
pub const RUN_SECONDS_MAX: u32 = 6 * 3600;
/// Calls of a run, unless the policy says.
pub const RUN_CALLS: u32 = 10_000;
/// Calls of a run at most.
pub const RUN_CALLS_MAX: u32 = 100_000;
/// Bytes that a run gets back from its agent: output and files that it reads.
pub const RUN_BYTES_IN_MAX: u64 = 64 * 1024 * 1024;
/// Bytes that a run sends in arguments, environments, input and files that it writes. Bundles are not counted: they do not pass the module.
pub const RUN_BYTES_OUT_MAX: u64 = 64 * 1024 * 1024;
/// Log lines of a run, standard output and error included.
pub const RUN_LOG_LINES_MAX: u32 = 10_000;
/// Lines of one command's output that are copied to the run's log. The module gets all of it, up to its own limit.
pub const OUTPUT_LOG_LINES_MAX: u32 = 500;
/// Bytes of one answer that are kept in its journal's entry; a larger one goes beside.
pub const KEPT_INLINE_BYTES_MAX: usize = 4 * 1024;
/// Bytes of answers that are kept in the entries of one run's journal; the next ones go beside.
pub const RUN_KEPT_INLINE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of answers that are kept beside the journal of one run. A run that was answered more can not be replayed.
pub const RUN_KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of answers that are kept beside all journals, compressed; beyond it the oldest are cleared away.
pub const KEPT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Contents beside a journal that are read at once.
pub const KEPT_AT_ONCE: u32 = 8;
/// Bytes of the line that tells a person of one call.
pub const ASKED_SHOWN_BYTES_MAX: usize = 1024;
/// Processor time that a module may take in a replay beside twice that of its run's limit: other machines are slower.
pub const REPLAY_CPU_SPARE: Duration = Duration::from_secs(1);
/// Bytes of one recording: a log and a journal of the largest run, with what is beside it.
pub const RECORDING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of one line of an export: a module, as base64.
pub const EXPORT_LINE_BYTES_MAX: usize = 2 * MODULE_BYTES_MAX;
/// Replays that go on at once.
pub const REPLAYS_AT_ONCE_MAX: usize = 16;
/// Recordings that are fetched from a server at once.
pub const RECORDINGS_AT_ONCE: usize = 4;
/// Log lines and journal entries of a run that wait to be stored; the run waits beyond.
pub const RECORDS_WAITING_MAX: usize = 4096;
/// Bytes in a refusal's text, or in what is kept of a trap.
pub const REASON_BYTES_MAX: usize = 4 * 1024;
/// Bytes in one log line; longer ones are cut.
pub const LOG_LINE_BYTES_MAX: usize = 8 * 1024;

// The sandbox.

/// How far apart the engine's deadlines are looked at.
pub const EPOCH_TICK: Duration = Duration::from_millis(10);
/// Runs at once, unless the configuration says.
pub const RUNS_AT_ONCE: u32 = 128;
/// Runs at once at most.
pub const RUNS_AT_ONCE_MAX: u32 = 1024;
/// Bytes of a memory or a table that stay with the process when a run has ended, cleared, for the next one.
pub const RUN_PAGES_KEPT_BYTES: usize = 256 * 1024;
/// Linear memories in one module. A Python component has three.
pub const MODULE_MEMORIES_MAX: u32 = 4;
/// Tables in one module.
pub const MODULE_TABLES_MAX: u32 = 32;
/// Core instances in one module.
pub const MODULE_CORE_INSTANCES_MAX: u32 = 32;
/// Elements in one table.
pub const TABLE_ELEMENTS_MAX: usize = 100_000;
/// Bytes that one host call may take from a module at a time; wasmtime calls it hostcall fuel. Room for a file to write and its arguments.
pub const HOSTCALL_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Handles that a module may hold at once.
pub const HANDLES_MAX: usize = 256;
/// Stack of a module's own calls.
pub const WASM_STACK_BYTES_MAX: usize = 512 * 1024;
/// Random bytes that a module may ask for at a time.
pub const RANDOM_BYTES_MAX: u64 = 64 * 1024;

// Calls.

/// Bytes of a file that a module reads or writes.
pub const CALL_FILE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of standard output, and of standard error, that are kept of a command.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of standard input of a command.
pub const STDIN_BYTES_MAX: usize = 1024 * 1024;
/// Arguments of a command, and variables of its environment.
pub const COMMAND_ARGS_MAX: usize = 1024;
/// Bytes of a command's arguments and environment together.
pub const COMMAND_BYTES_MAX: usize = 128 * 1024;
/// How long a command's output is waited for after the command itself has ended.
pub const EXEC_LINGER_MAX: Duration = Duration::from_secs(1);
/// Bytes of a command's output that are passed on at a time.
pub const EXEC_PIECE_BYTES: usize = 64 * 1024;
/// How deep the directories are that a call removes.
pub const REMOVE_DEPTH_MAX: usize = 128;
/// Bytes of a secret, or of a line of it, from which on it is cut from what comes back: cutting shorter ones would cut half of every text.
pub const REDACTED_BYTES_MIN: usize = 4;
/// Bytes in a secret.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;

// The session.

/// Bytes in one message of a session. A manifest goes in pieces.
pub const SESSION_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Sessions open at once, unless the configuration says.
pub const SESSIONS_MAX: usize = 10_000;
/// How often each side of a session says that it is there.
pub const SESSION_PING_INTERVAL: Duration = Duration::from_secs(10);
/// After how long without a word a session is lost.
pub const SESSION_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Calls that an agent does at once in a session.
pub const CALLS_AT_ONCE_MAX: usize = 16;
/// Messages of a session that wait to be sent, and pieces of a pack that wait for the disk.
pub const SESSION_PIECES_WAITING_MAX: usize = 8;
/// The first pause before an agent tries again to reach the server.
pub const RECONNECT_FIRST: Duration = Duration::from_millis(500);
/// The longest pause before an agent tries again to reach the server.
pub const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// Within what time agents whose session was lost ask for another, spread at random: they may be all that there are.
pub const SESSION_AGAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may bring no request, or a request may take to bring its head. Longer than the usual pause between two polls.
pub const CONNECTION_IDLE_MAX: Duration = Duration::from_secs(120);
/// The pause after a connection could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After how long without a word the machine asks whether the other side of a connection is there still.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Agents that are dialled at once.
pub const DIALS_AT_ONCE: usize = 32;
/// The first pause before an agent that was not reached is dialled again.
pub const DIAL_FIRST: Duration = Duration::from_secs(1);
/// The longest pause before an agent that was not reached is dialled again.
pub const DIAL_MAX: Duration = Duration::from_secs(60);
/// For how long a link must have been open for its agent's pauses to begin again with the first.
pub const DIAL_STEADY: Duration = Duration::from_secs(15);
/// How long connecting to an agent may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take from then on until a link is open, all steps together.
pub const REACH_MAX: Duration = Duration::from_secs(180);
/// Networks of which the configuration may say that they are dialled.
pub const DIAL_NETWORKS_MAX: usize = 256;
/// How long it may take to look for `muster-agent` on a machine, or to place it there.
pub const PROBE_MAX: Duration = Duration::from_secs(120);
/// Bytes of what a machine says meanwhile that are kept.
pub const PROBE_BYTES_MAX: usize = 16 * 1024;

// The ssh link.

/// The port on which a host's sshd listens unless told otherwise.
pub const SSH_PORT: u16 = 22;
/// Bytes in a host's name.
pub const HOST_BYTES_MAX: usize = 253;
/// Bytes in one label of a host's name.
pub const HOST_LABEL_BYTES_MAX: usize = 63;
/// Bytes in a host key as text. An RSA key of 16384 bits has 2,800.
pub const HOST_KEY_BYTES_MAX: usize = 4096;
/// Bytes in a private key's or a certificate's file.
pub const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Bytes in the file of known hosts.
pub const KNOWN_HOSTS_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Characters of a text from elsewhere that are shown in an error.
pub const SSH_SHOWN_CHARS_MAX: usize = 200;
/// Credentials offered on one connection. sshd's `MaxAuthTries` is 6 unless set.
pub const SSH_CREDENTIALS_TRIED_MAX: usize = 6;
/// Bytes that a host may send of one command's output ahead of being asked for more.
pub const SSH_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Bytes in one packet that a host may send. sshd sends no more than 32 KiB.
pub const SSH_PACKET_BYTES_MAX: u32 = 32 * 1024;
/// Packets of one command's output that wait to be read; beyond, the connection waits.
pub const SSH_PACKETS_WAITING_MAX: usize = 32;
/// Bytes of one command's input that are given to the connection before it must have passed earlier ones on to the network.
pub const SSH_INPUT_BYTES_WAITING_MAX: usize = 1024 * 1024;
/// Keepalives without an answer after which a host is lost.
pub const SSH_KEEPALIVES_UNANSWERED_MAX: u32 = 2;
/// How long saying goodbye may take.
pub const SSH_GOODBYE_MAX: Duration = Duration::from_secs(1);

// Provisioning and launching.

/// Agents that are looked at at once, to find out whether something is to be done for them.
pub const LOOKS_AT_ONCE: usize = 16;
/// How long an agent has to end what ran and to start what is to be launched.
pub const LAUNCH_MAX: Duration = Duration::from_secs(60);
/// The first pause before a failed agent is provisioned again.
pub const RETRY_FIRST: Duration = Duration::from_secs(5);
/// The longest pause before a failed agent is provisioned again.
pub const RETRY_MAX: Duration = Duration::from_secs(600);
/// The first pause before an agent starts again what it launched and what ended.
pub const RELAUNCH_FIRST: Duration = Duration::from_secs(1);
/// The longest pause before an agent starts again what it launched and what ended.
pub const RELAUNCH_MAX: Duration = Duration::from_secs(60);
/// For how long what was launched must run for its pauses to begin again with the first.
pub const RELAUNCH_STEADY: Duration = Duration::from_secs(60);
/// How long what was launched has to end by itself before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// Bytes of what was launched writes that are kept, and of what an agent that `link` started logs; as many again are kept of what came
/// before.
pub const LAUNCHED_LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// For how long a run's log lines gather before they are stored and shown to whoever follows.
pub const RECORDS_GATHER: Duration = Duration::from_millis(100);
/// How long to wait before the end of a run is written again, when the store could not write it.
pub const STORE_RETRY: Duration = Duration::from_secs(1);

// What is kept.

/// Runs kept of each agent.
pub const RUNS_KEPT_PER_AGENT: u32 = 50;
/// How long the log and the journal of a run are kept.
pub const RUN_RECORDS_KEPT: Duration = Duration::from_secs(14 * 24 * 3600);
/// Changes of state kept of each agent.
pub const EVENTS_KEPT_PER_AGENT: u32 = 200;
/// How long an agent that is gone is kept.
pub const GONE_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a boot is kept: over so long a time the cost of an image is told.
pub const BOOTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Boots kept of each label; the newest stand for all where there are more.
pub const BOOTS_KEPT_PER_LABEL: u32 = 10_000;
/// Images whose cost is told of one label. Agents name them.
pub const BOOT_IMAGES_SHOWN_MAX: u32 = 100;
/// Images that the metrics tell apart for each label.
pub const BOOT_IMAGES_COUNTED_MAX: usize = 32;
/// How often what is over these limits is cleared away.
pub const CLEAR_INTERVAL: Duration = Duration::from_secs(600);

// The store.

/// Connections to the database, for reading and, on PostgreSQL, writing.
pub const STORE_CONNECTIONS_MAX: u32 = 16;
/// How long a call may wait for a connection to the database.
pub const STORE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Rows written or deleted by one statement.
pub const STORE_BATCH_ROWS: usize = 500;
/// Heartbeats written by one statement: many, as PostgreSQL may read the whole table for each.
pub const STORE_SEEN_BATCH_ROWS: usize = 5_000;
/// Segments of one upload that are written to the disk at once.
pub const SEGMENTS_STORED_AT_ONCE: usize = 2;
/// Segments that are kept in memory after they were read, for other agents that want the same.
pub const SEGMENTS_AT_HAND: usize = 3;
/// Agents to which contents are sent at once, unless the configuration says.
pub const STREAMS_MAX: usize = 128;
/// The most agents to which the configuration may have contents sent at once.
pub const STREAMS_CEILING: usize = 10_000;
/// Bytes that contents leave free on their disk: what one takes more is refused, so that the database beside them can go on.
pub const CONTENTS_FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;

// The configuration and the tools.

/// How long one step of the demo may take.
pub const DEMO_STEP_MAX: Duration = Duration::from_secs(60);
/// Bytes in a configuration file, a policy file or a token's file.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// The longest time that the configuration may keep a lost agent.
pub const LOST_KEPT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The most sessions that the configuration may allow.
pub const SESSIONS_CEILING: usize = 1_000_000;
/// The most runs of one agent that the configuration may keep.
pub const RUNS_KEPT_PER_AGENT_MAX: u32 = 10_000;
/// The longest time that the configuration may keep the log and the journal of a run, in days.
pub const RUN_RECORDS_KEPT_DAYS_MAX: u32 = 3650;
/// How long the tools wait for a connection to the server.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in an answer that the tools read whole, a manifest excepted.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often the tools try a call that only looks.
pub const GET_TRIES: u32 = 3;
/// The pause before the tools try such a call again; doubled each time.
pub const GET_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How often the tools take up a stream again that brings nothing.
pub const FOLLOW_TRIES: u32 = 10;
/// Bytes in one event of a stream that the tools follow.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

const _: () = {
    assert!(SESSION_MESSAGE_BYTES_MAX > 2 * PIECE_BYTES, "a piece of content fits into a message");
    assert!(SESSION_MESSAGE_BYTES_MAX > CALL_FILE_BYTES_MAX + STDIN_BYTES_MAX, "a file to write fits into a message");
    assert!(
        HOSTCALL_BYTES_MAX > CALL_FILE_BYTES_MAX + COMMAND_BYTES_MAX,
        "a call that is within its own limits is not stopped by the engine's"
    );
    assert!(
        RUN_MEMORY_MIB <= RUN_MEMORY_MIB_MAX
            && RUN_CPU_MS <= RUN_CPU_MS_MAX
            && RUN_SECONDS <= RUN_SECONDS_MAX
            && RUN_CALLS <= RUN_CALLS_MAX
    );
    assert!(LAUNCH_MAX.as_millis() > 2 * STOP_GRACE.as_millis(), "what ran has its time to end");
    assert!(REACH_MAX.as_millis() > PROBE_MAX.as_millis() + SESSION_SILENCE_MAX.as_millis(), "a step's own limit says what was slow");
    assert!(CONTROLLER_CHECK_MAX.as_millis() < REQUEST_TIMEOUT.as_millis(), "a check says by itself what was slow");
    assert!(DEMAND_WAIT_MAX.as_millis() < REQUEST_TIMEOUT.as_millis(), "who waits for a first answer is told why there is none");
    assert!(SESSION_SILENCE_MAX.as_millis() > 2 * SESSION_PING_INTERVAL.as_millis(), "one lost ping does not lose a session");
};
