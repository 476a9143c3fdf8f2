//! The house put together: one server in this process, from its configuration to its last request.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::TokenKind;
use crate::config::{Config, Ssh};
use crate::controller::Controllers;
use crate::controller::nodes::Nodes;
use crate::credential::{self, Holder};
use crate::http::compat::Compat;
use crate::http::{self, App, Parts};
use crate::journal::now_us;
use crate::limits::{
    BOOTS_KEPT, BOOTS_KEPT_PER_LABEL, DIAL_TIMEOUT, EVENTS_KEPT_PER_AGENT, GONE_KEPT, ID_BYTES, KEPT_BYTES_MAX, MANIFESTS_AT_ONCE,
    SESSION_PING_INTERVAL, STOP_GRACE,
};
use crate::link::ssh;
use crate::link::ssh::login::Identity;
use crate::machine::root::replace;
use crate::provision::{self, Provision};
use crate::reconcile::dial::Dialler;
use crate::reconcile::nodes::Keeper;
use crate::reconcile::{self, demand, dial, nodes};
use crate::roster::{Roster, Settings};
use crate::sandbox::Sandbox;
use crate::sandbox::compiler::Compiler;
use crate::shelf::Shelf;
use crate::store::Store;
use crate::store::blobs::Blobs;
use crate::store::clear::Kept;
use crate::store::secrets::Secrets;
use crate::store::segments::{Segments, Sending};
use crate::store::tokens::TokenRow;
use crate::telemetry::Metrics;

/// The file of the first admin's token, in the data directory.
const ADMIN_TOKEN_NAME: &str = "admin.token";

/// Why a server does not start or stop, for a person: each says what was wanted.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The file of what tells this server from others, in the data directory: its nodes at controllers say it. It is beside the database, so that
/// they are known still when the database is lost.
const SERVER_ID_NAME: &str = "server.id";

/// A server that runs in this process.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The file of the admin's token.
    pub admin_token: PathBuf,
    /// Whether this start made it.
    pub admin_token_is_new: bool,
    /// Its agents.
    pub roster: Arc<Roster>,
    ending: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    store: Store,
    sandbox: Arc<Sandbox>,
    _lock: std::fs::File,
    _work: Vec<AbortOnDropHandle<()>>,
}

impl Server {
    /// Starts a server: opens the store, ends what an earlier life left, and listens. `program` is `muster`, which compiles what is uploaded.
    ///
    /// # Errors
    /// When something that it needs can not be had; each says what.
    pub async fn start(config: &Config, program: PathBuf) -> Result<Self, Failure> {
        let compat = Compat::open(&config.compat)?;
        let controllers = Arc::new(Controllers::open(&config.controller)?);
        let data = open_data(&config.data)?;
        let lock = lock(&config.data)?;
        // Before anything is made: a first start that finds its address taken is still the first start the next time.
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|error| format!("can not listen on {}: {error}; another address is set with `--listen` or `listen`", config.listen))?;
        let address = listener.local_addr()?;
        let url = match &config.database {
            Some(url) => url.as_str().to_owned(),
            None => format!("sqlite://{}", config.data.join("muster.db").display()),
        };
        let store = Store::open(&url).await?;
        let blobs = Blobs::open(&config.data.join("contents")).await?;
        let segments = Segments::open(
            &config.data.join("segments"),
            blobs.clone(),
            store.clone(),
            Sending { streams_max: config.bits.streams_max, bytes_per_second: config.bits.bytes_per_second },
        )
        .await?;
        let secrets = Secrets::open(&config.data.join("secrets"))?;
        let admin_token_is_new = make_admin_token(&data, &store).await?;
        let metrics = Arc::new(Metrics::new());
        // The engine does not make the directory of its cache by itself when it is told where.
        data.create_dir_all("compiled")?;
        let cache = std::path::absolute(config.data.join("compiled"))?;
        // It may be a name for whatever this process runs, as `/proc/self/exe` is.
        let real = program.canonicalize().unwrap_or_else(|_| program.clone());
        let own_agent = real.parent().map(|beside| beside.join("muster-agent")).filter(|program| program.is_file());
        let sandbox = Arc::new(Sandbox::new(Some(Compiler { program, cache }), config.runs.at_once)?);
        let shelf = Arc::new(Shelf::load(store.clone(), blobs.clone(), segments.clone(), Arc::clone(&sandbox), controllers.names()).await?);
        let settings = Settings {
            poll: config.register.poll_interval(),
            lost_kept: config.register.lost_kept(),
            dynaslave_kept: config.compat.dynaslave_kept(),
            sessions_max: config.sessions.max,
            dials: config.ssh.is_some(),
        };
        let roster = Arc::new(Roster::load(store.clone(), settings).await?);
        let kept_nodes = Arc::new(Nodes::load(store.clone(), segments.clone(), Arc::clone(&controllers), &server_id(&data)?).await?);
        let parts = provision::Parts {
            store: store.clone(),
            shelf: Arc::clone(&shelf),
            roster: Arc::clone(&roster),
            nodes: Arc::clone(&kept_nodes),
            sandbox: Arc::clone(&sandbox),
            secrets,
            metrics: Arc::clone(&metrics),
        };
        let provision = Provision::new(parts, config.runs.at_once);
        let provision = Arc::new(provision);
        provision.recover().await?;
        let ending = CancellationToken::new();
        let app_shelf = Arc::clone(&shelf);
        let app = App::new(Parts {
            store: store.clone(),
            blobs,
            segments,
            shelf,
            controllers: Arc::clone(&controllers),
            nodes: Arc::clone(&kept_nodes),
            manifests: Semaphore::new(MANIFESTS_AT_ONCE),
            roster: Arc::clone(&roster),
            provision: Arc::clone(&provision),
            metrics: Arc::clone(&metrics),
            metrics_public: config.metrics.public,
            compat,
            ending: ending.clone(),
        });
        let kept = Kept {
            runs_per_agent: config.kept.runs_per_agent,
            records_us: i64::from(config.kept.record_days) * 24 * 3600 * 1_000_000,
            events_per_agent: EVENTS_KEPT_PER_AGENT,
            gone_us: i64::try_from(GONE_KEPT.as_micros()).unwrap_or(i64::MAX),
            boots_us: i64::try_from(BOOTS_KEPT.as_micros()).unwrap_or(i64::MAX),
            boots_per_label: BOOTS_KEPT_PER_LABEL,
            contents_bytes: KEPT_BYTES_MAX,
        };
        let mut work = vec![
            AbortOnDropHandle::new(tokio::spawn(provision.work())),
            AbortOnDropHandle::new(tokio::spawn(reconcile::work(store.clone(), Arc::clone(&roster), settings.poll, kept))),
        ];
        for controller in controllers.iter() {
            let looking = demand::work(Arc::clone(controller), Arc::clone(&app_shelf), Arc::clone(&metrics));
            work.push(AbortOnDropHandle::new(tokio::spawn(looking)));
            let keeper = Keeper::new(Arc::clone(controller), Arc::clone(&kept_nodes), Arc::clone(&roster), Arc::clone(&app_shelf));
            work.push(AbortOnDropHandle::new(tokio::spawn(nodes::work(keeper))));
        }
        if let Some(ssh) = &config.ssh {
            let dialler = Dialler {
                store: store.clone(),
                roster: Arc::clone(&roster),
                shelf: app_shelf,
                settings: ssh_settings(ssh)?,
                dynaslave_user: config.compat.dynaslave.as_ref().and_then(|section| section.user.clone()),
                program: ssh.program.clone().or(own_agent),
            };
            work.push(AbortOnDropHandle::new(tokio::spawn(dial::work(dialler))));
        }
        let serving = tokio::spawn(http::serve(listener, app, STOP_GRACE));
        let admin_token = config.data.join(ADMIN_TOKEN_NAME);
        Ok(Self { address, admin_token, admin_token_is_new, ending, serving, store, roster, sandbox, _lock: lock, _work: work })
    }

    /// Stops: takes no more requests, ends sessions and streams, and writes what is still to be written.
    ///
    /// Runs that are under way are cut off; they end at the next start, and are tried again.
    ///
    /// # Errors
    /// When serving had failed, or the last heartbeats can not be written.
    pub async fn stop(self) -> Result<(), Failure> {
        self.ending.cancel();
        self.serving.await?;
        self.sandbox.close().await;
        self.roster.flush_heartbeats().await?;
        self.store.close().await;
        Ok(())
    }
}

/// How agents are dialled.
fn ssh_settings(ssh: &Ssh) -> Result<ssh::login::Settings, Failure> {
    let mut certificate = ssh.certificate.clone();
    let identities = ssh.keys.iter().map(|key| Identity { key: key.clone(), certificate: certificate.take() }).collect();
    let authorities = ssh.authorities.iter().map(|key| key.parse());
    let authorities = authorities.collect::<Result<_, _>>().map_err(|error| format!("ssh.authorities: {error}"))?;
    Ok(ssh::login::Settings {
        user: ssh.user.clone(),
        identities,
        agent: ssh.agent.clone(),
        known_hosts: ssh.known_hosts.clone(),
        authorities,
        first_use: ssh.first_use,
        networks: ssh.networks.clone(),
        connect_timeout: DIAL_TIMEOUT,
        keepalive_interval: SESSION_PING_INTERVAL,
    })
}

/// Makes the data directory, which nobody else may look into.
fn open_data(path: &Path) -> Result<Dir, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: std::io::Error| format!("can not use {} as the data directory: {error}", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    // One that was there may be anybody's to look into; if it is somebody else's, that is theirs to say.
    if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)) {
        tracing::warn!(%error, "the data directory {} keeps its mode; see that others can not look into it", path.display());
    }
    Ok(Dir::open_ambient_dir(path, ambient_authority()).map_err(failed)?)
}

/// Keeps a second server out of the data directory. The lock goes with the process.
fn lock(data: &Path) -> Result<std::fs::File, Failure> {
    let file = std::fs::File::create(data.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(format!("another server uses the data directory {}", data.display()).into()),
        Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// What tells this server from others: made at its first start.
fn server_id(data: &Dir) -> Result<String, Failure> {
    match data.read_to_string(SERVER_ID_NAME) {
        Ok(text) => {
            let id = text.trim();
            let fits = id.len() == ID_BYTES && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if fits {
                Ok(id.to_owned())
            } else {
                Err(format!("`{SERVER_ID_NAME}` in the data directory holds no id; put it back from a backup").into())
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = credential::new_id();
            replace(data, Path::new(SERVER_ID_NAME), format!("{id}\n").as_bytes(), 0o600)?;
            Ok(id)
        }
        Err(error) => Err(format!("`{SERVER_ID_NAME}` in the data directory can not be read: {error}").into()),
    }
}

/// Makes the first admin's token, unless its file is there. The row is written first: a file without a row would be worth nothing.
async fn make_admin_token(data: &Dir, store: &Store) -> Result<bool, Failure> {
    if data.exists(ADMIN_TOKEN_NAME) {
        return Ok(false);
    }
    let made = credential::make(Holder::Token, credential::new_id());
    let row = TokenRow {
        id: made.id,
        kind: TokenKind::Admin,
        team: None,
        labels: Vec::new(),
        secret_hash: made.hash,
        made_us: now_us(),
        revoked_us: None,
    };
    store.insert_token(&row).await?;
    replace(data, Path::new(ADMIN_TOKEN_NAME), format!("{}\n", made.text).as_bytes(), 0o600)?;
    Ok(true)
}
