//! Bundles: contents that the server lacks first, then the manifest that makes a version of them.

use std::collections::HashSet;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{Bundle, ContentsAsked, ContentsMissing, ContentsStored, Page};
use crate::bits::contents::Packing;
use crate::bits::manifest::Manifest;
use crate::bits::pack::{Opener, PackError, Packed, Unpacker};
use crate::http::App;
use crate::http::access::Person;
use crate::http::problem::{Chain, Fault};
use crate::http::receive::{Asked, Name, Names, Paging, Pieces, body, json, page};
use crate::journal::now_us;
use crate::limits::{CHUNKS_MAX, CONTENTS_TIMEOUT, CONTENTS_VERIFIED_BYTES, DIGESTS_ASKED_MAX, MANIFEST_BYTES_MAX, READER_STALL_TIMEOUT};
use crate::names::{BundleName, Digest, TeamName};
use crate::store::bundles::BundleRow;
use crate::store::segments::SegmentWriter;

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
    let places = app.store.places(&digests).await?;
    let missing = digests.iter().zip(places).filter(|(_, place)| place.is_none()).map(|(digest, _)| digest.to_string()).collect();
    Ok(axum::Json(ContentsMissing { missing }))
}

/// Takes contents: a pack, as `muster bundle push` makes it. Some of what came whole before an error is kept.
#[utoipa::path(
    post, path = "/v1/contents", tag = "bundles", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ContentsStored), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn contents(State(app): State<App>, _person: Person, content: Body) -> Result<axum::Json<ContentsStored>, Fault> {
    let mut storing = Storing { writer: app.segments.writer(), app, begun: 0, stored: ContentsStored { stored: 0, bytes: 0 } };
    match storing.all(Pieces::new(content)).await {
        Ok(()) => {}
        Err(fault) => {
            // What came before is worth keeping: whoever sends it again begins behind it.
            if let Err(error) = storing.writer.finish().await {
                tracing::debug!(%error, "what came before an upload broke off is not kept");
            }
            return Err(fault);
        }
    }
    storing.writer.finish().await?;
    Ok(axum::Json(storing.stored))
}

/// Contents on their way to the store.
struct Storing {
    app: App,
    writer: SegmentWriter,
    begun: usize,
    stored: ContentsStored,
}

impl Storing {
    async fn all(&mut self, mut pieces: Pieces) -> Result<(), Fault> {
        let (mut unpacker, mut waiting, mut waiting_bytes) = (Unpacker::default(), Vec::new(), 0);
        while let Some(piece) = pieces.next().await? {
            unpacker.feed(&piece);
            while let Some(packed) = unpacker.record().map_err(broken)? {
                self.begun += 1;
                if self.begun > CHUNKS_MAX {
                    return Err(Fault::too_large(format!("more than {CHUNKS_MAX} contents in one pack")));
                }
                waiting_bytes += packed.record_bytes();
                waiting.push(packed);
                // What many records unpack to is looked at one after the other, so that a few bytes that stand for many take no memory.
                if waiting_bytes >= CONTENTS_VERIFIED_BYTES {
                    self.store(std::mem::take(&mut waiting)).await?;
                    waiting_bytes = 0;
                }
            }
        }
        self.store(waiting).await?;
        unpacker.finish().map_err(broken)
    }

    async fn store(&mut self, contents: Vec<Packed>) -> Result<(), Fault> {
        let digests: Vec<Digest> = contents.iter().map(|packed| packed.digest).collect();
        let verifying = tokio::task::spawn_blocking(move || {
            let (mut opener, mut content) = (Opener::new()?, Vec::new());
            contents.iter().try_for_each(|packed| opener.open(packed, &mut content))?;
            Ok::<_, PackError>(contents)
        });
        let contents = verifying.await.map_err(|_| Fault::internal("verifying contents broke down"))?.map_err(broken)?;
        let places = self.app.store.places(&digests).await?;
        let mut seen = HashSet::new();
        for (packed, _) in contents.iter().zip(&places).filter(|(packed, place)| place.is_none() && seen.insert(packed.digest)) {
            self.writer.add(packed).await?;
            self.stored.stored += 1;
            self.stored.bytes += u64::from(packed.size);
        }
        Ok(())
    }
}

fn broken(error: PackError) -> Fault {
    Fault::unprocessable("pack", format!("the pack can not be read: {error}"))
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
    // Before the body is taken: while its turn has not come, it waits with the caller. The semaphore is never closed.
    let _turn = app.manifests.acquire().await.ok();
    let text = body(content, MANIFEST_BYTES_MAX).await?;
    // A large one takes seconds.
    let bytes = text.clone();
    let parsed = tokio::task::spawn_blocking(move || Manifest::parse(&bytes)).await;
    let manifest = parsed
        .map_err(|_| Fault::internal("reading the manifest broke down"))?
        .map_err(|error| Fault::unprocessable("manifest", format!("the manifest can not be used: {error}")))?;
    let digests: Vec<Digest> = manifest.contents().iter().map(|(digest, _)| *digest).collect();
    let places = app.store.places(&digests).await?;
    let missing = places.iter().filter(|place| place.is_none()).count();
    if missing > 0 {
        return Err(Fault::conflict("contents-missing", format!("the server lacks {missing} of the bundle's contents"))
            .with_hint("ask at /v1/contents/missing which, send them to /v1/contents, then push again"));
    }
    // No agent could take such a version: a content that has not the size that was said is refused there.
    let odd = manifest.contents().iter().zip(&places).find(|((_, said), place)| place.is_some_and(|place| u64::from(place.size) != *said));
    if let Some(((digest, said), place)) = odd {
        let size = place.map(|place| place.size).unwrap_or_default();
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

/// Sends contents of one version of a bundle as a pack, in whatever order is best. The body names them by their indices among the manifest's
/// distinct contents, as 32-bit little-endian numbers.
#[utoipa::path(
    post, path = "/v1/bundles/{name}/{version}/contents", tag = "bundles",
    params(("name" = String, Path), ("version" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = "4XX", body = crate::api::Problem))
)]
pub(crate) async fn send(
    State(app): State<App>,
    person: Person,
    Names(name, version): Names<BundleName, Digest>,
    content: Body,
) -> Result<([(header::HeaderName, &'static str); 1], Body), Fault> {
    let asked = body(content, CHUNKS_MAX * 4).await?;
    if asked.len() % 4 != 0 {
        return Err(Fault::unprocessable("contents", "the body is a list of numbers of four bytes each"));
    }
    find(&app, &person, &name, &version).await?;
    let mut bundle = app.shelf.bundle(&name, version).await?;
    let known = u32::try_from(bundle.manifest.contents().len()).unwrap_or(u32::MAX);
    let (mut wanted, mut seen) = (Vec::with_capacity(asked.len() / 4), HashSet::new());
    for index in asked.chunks(4) {
        let index = index.try_into().map(u32::from_le_bytes).ok().filter(|index| *index < known && seen.insert(*index));
        wanted
            .push(index.ok_or_else(|| Fault::unprocessable("contents", "an index is not one of the manifest's contents, or comes twice"))?);
    }
    bundle.contents = app.segments.for_readers(bundle.contents);
    let packing = Packing::new(&bundle, wanted).await;
    let (sender, pieces) = mpsc::channel(1);
    // In a task of its own, which ends, and with it the caller's turn, whether the caller goes on to read or not.
    tokio::spawn(async move {
        if tokio::time::timeout(CONTENTS_TIMEOUT, give(packing, &sender)).await.is_err() {
            let _ = sender.try_send(Err(std::io::Error::from(std::io::ErrorKind::TimedOut)));
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(ReceiverStream::new(pieces))))
}

/// Gives a pack to whoever reads it, as long as they do. One that is cut off lacks its end, by which that is seen.
async fn give(mut packing: Packing, reader: &mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let piece = match packing.next(&[]).await {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => return,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "contents that a caller asked for can not be sent");
                Err(std::io::Error::other(error))
            }
        };
        let is_last = piece.is_err();
        if reader.send_timeout(piece, READER_STALL_TIMEOUT).await.is_err() || is_last {
            return;
        }
    }
}

async fn find(app: &App, person: &Person, name: &BundleName, version: &Digest) -> Result<BundleRow, Fault> {
    let row = app.store.bundle(name, version).await?.filter(|row| person.sees(&row.team));
    row.ok_or_else(|| unknown(name))
}

fn unknown(name: &BundleName) -> Fault {
    Fault::not_found("no-bundle", format!("there is no such bundle `{name}`, or it belongs to another team"))
        .with_hint("`muster bundle ls` lists them")
}
