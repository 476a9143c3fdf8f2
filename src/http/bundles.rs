//! Bundles: contents that the server lacks first, then the manifest that makes a version of them.

use std::collections::VecDeque;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::task::JoinSet;

use crate::api::{Bundle, ContentsAsked, ContentsMissing, ContentsStored, Page};
use crate::bits::manifest::Manifest;
use crate::bits::pack::{Sink, Unpacker};
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::Fault;
use crate::http::receive::{Asked, Name, Names, Paging, Pieces, body, json, page};
use crate::journal::now_us;
use crate::limits::{BLOB_PART_BYTES, BUNDLE_ENTRIES_MAX, CONTENTS_STORED_AT_ONCE, DIGESTS_ASKED_MAX, FILE_BYTES_MAX, MANIFEST_BYTES_MAX};
use crate::names::{BundleName, Digest, TeamName};
use crate::store::blobs::{BlobError, BlobWriter, Blobs};
use crate::store::bundles::BundleRow;

impl From<BundleRow> for Bundle {
    fn from(row: BundleRow) -> Self {
        Self {
            name: row.name.to_string(),
            version: row.version.to_string(),
            team: row.team.to_string(),
            files: row.files,
            bytes: row.bytes,
            pushed_us: row.pushed_us,
        }
    }
}

/// Answers which of some contents the server lacks.
#[utoipa::path(
    post, path = "/v1/contents/missing", tag = "bundles", request_body = ContentsAsked,
    responses((status = 200, body = ContentsMissing), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn missing(State(app): State<App>, _person: Person, request: Request) -> Result<axum::Json<ContentsMissing>, Fault> {
    // A digest takes 67 bytes as JSON, and 74 with its prefix.
    let asked: ContentsAsked = json(request, DIGESTS_ASKED_MAX * 80).await?;
    if asked.digests.len() > DIGESTS_ASKED_MAX {
        return Err(Fault::too_large(format!("{} digests; ask for at most {DIGESTS_ASKED_MAX} at once", asked.digests.len())));
    }
    let digests: Result<Vec<Digest>, _> = asked.digests.iter().map(|text| text.parse()).collect();
    let digests = digests.map_err(|error| Fault::unprocessable("digest", error.to_string()))?;
    let sizes = app.blobs.sizes(&digests).await?;
    let missing = digests.iter().zip(sizes).filter(|(_, size)| size.is_none()).map(|(digest, _)| digest.to_string()).collect();
    Ok(axum::Json(ContentsMissing { missing }))
}

/// Takes contents: a pack, as `muster bundle push` makes it. What came whole before an error is kept.
#[utoipa::path(
    post, path = "/v1/contents", tag = "bundles", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ContentsStored), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn contents(State(app): State<App>, _person: Person, content: Body) -> Result<axum::Json<ContentsStored>, Fault> {
    let broken = |error: &dyn std::error::Error| Fault::unprocessable("pack", format!("the pack can not be read: {error}"));
    let mut pieces = Pieces::new(content);
    let mut unpacker = Unpacker::new(Events::default()).map_err(|error| broken(&error))?;
    let mut storing = Storing::new(app.blobs.clone());
    while let Some(piece) = pieces.next().await? {
        // A little at a time: what it unpacks to waits in memory.
        let (mut left, mut more) = (piece.as_ref(), true);
        while more {
            more = unpacker.feed_some(&mut left).map_err(|error| broken(&error))?;
            storing.store(unpacker.sink().take()).await?;
        }
    }
    let mut events = unpacker.finish().map_err(|error| broken(&error))?;
    storing.store(events.take()).await?;
    Ok(axum::Json(storing.finish().await?))
}

/// What a pack unpacked to, waiting to be stored.
#[derive(Default)]
struct Events {
    waiting: VecDeque<Event>,
}

enum Event {
    Begin(Digest, u64),
    Data(Bytes),
    End,
}

impl Events {
    fn take(&mut self) -> VecDeque<Event> {
        std::mem::take(&mut self.waiting)
    }
}

impl Sink for Events {
    type Error = std::convert::Infallible;

    fn begin(&mut self, digest: &Digest, size: u64) -> Result<(), Self::Error> {
        self.waiting.push_back(Event::Begin(*digest, size));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.waiting.push_back(Event::Data(Bytes::copy_from_slice(bytes)));
        Ok(())
    }

    fn end(&mut self) -> Result<(), Self::Error> {
        self.waiting.push_back(Event::End);
        Ok(())
    }
}

/// Contents on their way to the store: small ones some at once, as each of them waits for the disk; large ones piece by piece.
struct Storing {
    blobs: Blobs,
    writing: Writing,
    small: JoinSet<Result<(), BlobError>>,
    begun: usize,
    stored: ContentsStored,
}

enum Writing {
    Nothing,
    Small(Digest, BytesMut),
    Large(BlobWriter),
}

impl Storing {
    fn new(blobs: Blobs) -> Self {
        Self { blobs, writing: Writing::Nothing, small: JoinSet::new(), begun: 0, stored: ContentsStored { stored: 0, bytes: 0 } }
    }

    async fn store(&mut self, events: VecDeque<Event>) -> Result<(), Fault> {
        for event in events {
            match (event, &mut self.writing) {
                (Event::Begin(_, size), _) if size > FILE_BYTES_MAX => {
                    return Err(Fault::too_large(format!("a file of {size} bytes; {FILE_BYTES_MAX} are allowed")));
                }
                (Event::Begin(..), _) if self.begun == BUNDLE_ENTRIES_MAX => {
                    return Err(Fault::too_large(format!("more than {BUNDLE_ENTRIES_MAX} contents in one pack")));
                }
                (Event::Begin(digest, size), writing) => {
                    self.begun += 1;
                    // What is there already is passed over, as nothing would be written for all the waiting.
                    if self.blobs.sizes(&[digest]).await?.first() == Some(&Some(size)) {
                        continue;
                    }
                    self.stored.bytes += size;
                    *writing = match size <= BLOB_PART_BYTES as u64 {
                        true => Writing::Small(digest, BytesMut::new()),
                        false => Writing::Large(self.blobs.writer(&digest, size).await?),
                    };
                }
                (Event::Data(bytes), Writing::Small(_, content)) => content.extend_from_slice(&bytes),
                (Event::Data(bytes), Writing::Large(writer)) => writer.write(&bytes).await?,
                (Event::Data(_), Writing::Nothing) => {}
                (Event::End, writing) => {
                    match std::mem::replace(writing, Writing::Nothing) {
                        Writing::Nothing => continue,
                        Writing::Small(digest, content) => self.put(digest, content.freeze()).await?,
                        Writing::Large(writer) => writer.finish().await?,
                    }
                    self.stored.stored += 1;
                }
            }
        }
        Ok(())
    }

    async fn put(&mut self, digest: Digest, content: Bytes) -> Result<(), Fault> {
        if self.small.len() >= CONTENTS_STORED_AT_ONCE {
            self.one().await?;
        }
        let blobs = self.blobs.clone();
        self.small.spawn(async move { blobs.put(&digest, content).await.map(drop) });
        Ok(())
    }

    async fn one(&mut self) -> Result<bool, Fault> {
        match self.small.join_next().await {
            None => Ok(false),
            Some(Ok(stored)) => Ok(stored.map(|()| true)?),
            Some(Err(_)) => Err(Fault::internal("storing a content broke down")),
        }
    }

    async fn finish(mut self) -> Result<ContentsStored, Fault> {
        while self.one().await? {}
        Ok(self.stored)
    }
}

/// For which team a bundle is pushed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Push {
    /// The team; an admin has to say, a team's token says it.
    #[param(value_type = Option<String>)]
    team: Option<TeamName>,
}

/// Makes a version of a bundle from its manifest, whose contents the server has.
#[utoipa::path(
    put, path = "/v1/bundles/{name}", tag = "bundles", params(("name" = String, Path), Push),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 201, body = Bundle), (status = 200, body = Bundle), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn push(
    State(app): State<App>,
    person: Person,
    Name(name): Name<BundleName>,
    Asked(asked): Asked<Push>,
    content: Body,
) -> Result<(StatusCode, axum::Json<Bundle>), Fault> {
    let team = person.team_for(asked.team)?;
    let text = body(content, MANIFEST_BYTES_MAX).await?;
    // A large one takes seconds.
    let bytes = text.clone();
    let parsed = tokio::task::spawn_blocking(move || Manifest::parse(&bytes)).await;
    let manifest = parsed
        .map_err(|_| Fault::internal("reading the manifest broke down"))?
        .map_err(|error| Fault::unprocessable("manifest", format!("the manifest can not be used: {error}")))?;
    let digests: Vec<Digest> = manifest.contents().iter().map(|(digest, _)| *digest).collect();
    let sizes = app.blobs.sizes(&digests).await?;
    let missing = sizes.iter().filter(|size| size.is_none()).count();
    if missing > 0 {
        return Err(Fault::conflict("contents-missing", format!("the server lacks {missing} of the bundle's contents"))
            .with_hint("ask at /v1/contents/missing which, send them to /v1/contents, then push again"));
    }
    // No agent could take such a version: a content that has not the size that was said is refused there.
    let odd = manifest.contents().iter().zip(&sizes).find(|((_, said), size)| size.is_some_and(|size| size != *said));
    if let Some(((digest, said), size)) = odd {
        let size = size.unwrap_or_default();
        return Err(Fault::unprocessable("manifest", format!("content {digest} has {size} bytes, and the manifest says {said}")));
    }
    let row = BundleRow {
        name: name.clone(),
        version: manifest.version(),
        team,
        files: manifest.files(),
        bytes: manifest.bytes(),
        pushed_us: now_us(),
    };
    app.blobs.put(&row.version, text).await?;
    let new = app.store.insert_bundle(&row).await.map_err(|error| match error {
        crate::store::StoreError::Conflict(why) => Fault::forbidden("not-yours", why),
        other => other.into(),
    })?;
    let row = app.store.bundle(&name, &row.version).await?.unwrap_or(row);
    tracing::info!(bundle = %row.name, version = %row.version, by = person.0.token, "a version of bundle {} was pushed", row.name);
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, axum::Json(row.into())))
}

/// Lists the bundles, each with its newest version.
#[utoipa::path(get, path = "/v1/bundles", tag = "bundles", params(Paging), responses((status = 200, body = Page<Bundle>)))]
pub(crate) async fn list(State(app): State<App>, person: Person, Asked(asked): Asked<Paging>) -> Result<axum::Json<Page<Bundle>>, Fault> {
    let rows = app.store.bundles(person.0.team.as_ref(), &page(asked.cursor, asked.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Bundle::from).collect(), next: rows.next }))
}

/// Lists the versions of a bundle, newest first.
#[utoipa::path(get, path = "/v1/bundles/{name}", tag = "bundles", params(("name" = String, Path), Paging), responses((status = 200, body = Page<Bundle>)))]
pub(crate) async fn versions(
    State(app): State<App>,
    person: Person,
    Name(name): Name<BundleName>,
    Asked(asked): Asked<Paging>,
) -> Result<axum::Json<Page<Bundle>>, Fault> {
    let newest = app.store.bundle_newest(&name).await?.filter(|row| person.sees(&row.team));
    newest.ok_or_else(|| unknown(&name))?;
    let rows = app.store.bundle_versions(&name, &page(asked.cursor, asked.limit)).await?;
    Ok(axum::Json(Page { items: rows.items.into_iter().map(Bundle::from).collect(), next: rows.next }))
}

/// Shows one version of a bundle.
#[utoipa::path(
    get, path = "/v1/bundles/{name}/{version}", tag = "bundles",
    params(("name" = String, Path), ("version" = String, Path)), responses((status = 200, body = Bundle))
)]
pub(crate) async fn show(
    State(app): State<App>,
    person: Person,
    Names(name, version): Names<BundleName, Digest>,
) -> Result<axum::Json<Bundle>, Fault> {
    Ok(axum::Json(find(&app, &person, &name, &version).await?.into()))
}

/// The manifest of one version of a bundle.
#[utoipa::path(
    get, path = "/v1/bundles/{name}/{version}/manifest", tag = "bundles",
    params(("name" = String, Path), ("version" = String, Path)), responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(crate) async fn manifest(
    State(app): State<App>,
    person: Person,
    Names(name, version): Names<BundleName, Digest>,
) -> Result<([(header::HeaderName, &'static str); 1], Bytes), Fault> {
    find(&app, &person, &name, &version).await?;
    let text = app.blobs.get(&version, MANIFEST_BYTES_MAX).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text))
}

async fn find(app: &App, person: &Person, name: &BundleName, version: &Digest) -> Result<BundleRow, Fault> {
    let row = app.store.bundle(name, version).await?.filter(|row| person.sees(&row.team));
    row.ok_or_else(|| unknown(name))
}

fn unknown(name: &BundleName) -> Fault {
    Fault::not_found("no-bundle", format!("there is no such bundle `{name}`, or it belongs to another team"))
        .with_hint("`muster bundle ls` lists them")
}
