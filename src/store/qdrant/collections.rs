//! The collections of one alias beside one another: what a change of the model needs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qdrant_client::qdrant::{
    CountPointsBuilder, CreateAliasBuilder, Filter, GetPointsBuilder, PayloadIncludeSelector, PointId, RetrievedPoint,
    ScrollPointsBuilder,
};
use qdrant_client::{Qdrant, QdrantError};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Faults, QdrantStore, convert, setup};
use crate::error::Fault;
use crate::store::lacking::Lacking;
use crate::store::order::{IMAGE_PENDING, SOURCE, STATE_FIELDS, State};
use crate::store::{ModelStamp, PROBE, SharedStore, StoreConfig, StoreKind};

/// All collections of a server, by name; one of them is live, which the alias says.
#[derive(Clone)]
pub struct Collections {
    client: Qdrant,
    faults: Arc<Faults>,
    config: StoreConfig,
}

/// A post of a collection, as a comparison sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The point.
    pub id: Uuid,
    /// The feed's id of the post.
    pub post_id: String,
    /// Whether its picture could not be had.
    pub image_pending: bool,
}

impl Collections {
    /// Connects; makes nothing.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the embedded store, which has no second collection; otherwise as [`crate::store::open`].
    pub async fn connect(config: &StoreConfig) -> Result<Self, Fault> {
        if config.kind != StoreKind::Qdrant {
            return Err(Fault::fatal(
                "the embedded store (store.kind = \"edge\") is one folder of one process and one model, so nothing can be \
                 made beside it: give the new model another folder (store.edge.dir) and another kafka.group, let `feedlens \
                 ingest` index the posts again there, and start the worker with it",
            ));
        }
        let faults = Faults::new(&config.qdrant)?;
        let client = setup::connect(&config.qdrant, &faults).await?;
        Ok(Self { client, faults: Arc::new(faults), config: config.clone() })
    }

    /// The alias.
    pub fn alias(&self) -> &str {
        &self.config.alias
    }

    /// The name of a model's collection.
    pub fn name_of(&self, stamp: &ModelStamp) -> String {
        setup::collection_name(&self.config.alias, stamp)
    }

    /// The collection that the alias points to.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: the server does not answer, or refuses.
    pub async fn live(&self) -> Result<Option<String>, Fault> {
        setup::alias_target(&self.client, &self.config.alias)
            .await
            .map_err(|error| self.failed("read the aliases of", &error))
    }

    /// Live posts of a collection; `None`: there is no such collection.
    ///
    /// # Errors
    /// As [`Self::live`].
    pub async fn posts(&self, collection: &str) -> Result<Option<u64>, Fault> {
        let failed = |error| self.failed("count the posts in", &error);
        if !self.client.collection_exists(collection).await.map_err(failed)? {
            return Ok(None);
        }
        let request = CountPointsBuilder::new(collection).filter(convert::live()).exact(true);
        let counted = self.client.count(request).await.map_err(failed)?.result;
        Ok(Some(counted.map_or(0, |counted| counted.count)))
    }

    /// When a collection was made, in milliseconds since 1970; `None`: by a version that did not keep it.
    ///
    /// # Errors
    /// As [`Self::live`], and where there is no such collection.
    pub async fn made_at(&self, collection: &str) -> Result<Option<i64>, Fault> {
        setup::made_at(&self.client, collection).await.map_err(|error| self.failed("read the collection of", &error))
    }

    /// A model's collection as a store, whatever the alias points to; the alias stays as it is.
    ///
    /// # Errors
    /// [`Fault::Fatal`]: as [`Self::live`], or the collection has other vectors than the model gives.
    pub async fn open(&self, stamp: &ModelStamp) -> Result<SharedStore, Fault> {
        let collection = self.name_of(stamp);
        setup::ensure_collection(&self.client, &self.faults, &self.config.qdrant, &collection, stamp).await?;
        Ok(Arc::new(QdrantStore {
            client: self.client.clone(),
            collection,
            alias: self.config.alias.clone(),
            stamp: stamp.clone(),
            search_ef: self.config.search_ef,
            faults: Faults::new(&self.config.qdrant)?,
            // That the alias points elsewhere is no news here.
            told_moved: AtomicBool::new(true),
        }))
    }

    /// Points the alias to a collection. One request and one action of the server, whether the alias was there before
    /// (it is replaced) or not: there is no moment without it.
    ///
    /// # Errors
    /// As [`Self::live`]; the alias is then where it was, or (where only the answer was lost) already moved.
    pub async fn point_alias_to(&self, collection: &str) -> Result<(), Fault> {
        let request = CreateAliasBuilder::new(collection, &self.config.alias);
        self.client.create_alias(request).await.map_err(|error| self.failed("move the alias in", &error))?;
        match self.live().await? {
            Some(live) if live == collection => Ok(()),
            live => Err(Fault::fatal(format!(
                "the alias {} was moved to {collection}, and points to {} now: someone else moves it too",
                self.config.alias,
                live.as_deref().unwrap_or("nothing")
            ))),
        }
    }

    /// Some posts of a collection in the order of their ids, and the id to go on with (`None`: that was the end). What workers
    /// tried the store with is left out.
    ///
    /// # Errors
    /// As [`Self::live`].
    pub async fn page(
        &self,
        collection: &str,
        from: Option<Uuid>,
        limit: u32,
    ) -> Result<(Vec<Seen>, Option<Uuid>), Fault> {
        let fields = ["post_id", IMAGE_PENDING, SOURCE];
        let (points, next) = self.scroll(collection, from, limit, Some(convert::live()), Some(&fields)).await?;
        let seen = points.into_iter().filter_map(|point| {
            let id = convert::uuid(point.id)?;
            let payload = convert::json(point.payload);
            if payload.get(SOURCE).and_then(|source| source.get("topic")?.as_str()) == Some(PROBE) {
                return None;
            }
            let post_id = payload.get("post_id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
            Some(Seen { id, post_id, image_pending: payload.get(IMAGE_PENDING) == Some(&true.into()) })
        });
        Ok((seen.collect(), next))
    }

    /// Those of the points that are posts in a collection.
    ///
    /// # Errors
    /// As [`Self::live`].
    pub async fn present(&self, collection: &str, ids: &[Uuid]) -> Result<Vec<Seen>, Fault> {
        let found = self.states(collection, ids, &["post_id"]).await?;
        let posts = found.into_iter().filter(|(_, (state, _))| !state.is_deleted());
        let seen = posts.map(|(id, (state, mut payload))| Seen {
            id,
            post_id: payload.remove("post_id").and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default(),
            image_pending: state.is_image_pending(),
        });
        Ok(seen.collect())
    }

    /// What the points of a page of one collection have that another lacks: posts and deletions that are not there, or
    /// only in an older form. Also gives how many points the page has, and the id to go on with.
    ///
    /// # Errors
    /// As [`Self::live`].
    pub async fn lacking(
        &self,
        source: &str,
        target: &str,
        from: Option<Uuid>,
        limit: u32,
    ) -> Result<(Vec<Lacking>, usize, Option<Uuid>), Fault> {
        let (points, next) = self.scroll(source, from, limit, None, None).await?;
        let looked_at = points.len();
        let points = points.into_iter().filter_map(|point| {
            let id = convert::uuid(point.id)?;
            let payload = convert::json(point.payload);
            let state = State::read_from(&payload).filter(|state| state.source.topic != PROBE)?;
            Some((id, state, payload))
        });
        let points = points.collect::<Vec<_>>();
        let ids = points.iter().map(|(id, ..)| *id).collect::<Vec<_>>();
        let known = self.states(target, &ids, &[]).await?;
        let lacking = points.into_iter().filter_map(|(id, state, payload)| {
            Lacking::new(id, &state, payload, known.get(&id).map(|(state, _)| state))
        });
        Ok((lacking.collect(), looked_at, next))
    }

    async fn states(
        &self,
        collection: &str,
        ids: &[Uuid],
        further: &[&str],
    ) -> Result<HashMap<Uuid, (State, Map<String, Value>)>, Fault> {
        let ids = ids.iter().map(|id| id.to_string().into()).collect::<Vec<PointId>>();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let fields = STATE_FIELDS.iter().chain(further).map(ToString::to_string).collect::<Vec<_>>();
        let request =
            GetPointsBuilder::new(collection, ids).with_payload(PayloadIncludeSelector { fields }).with_vectors(false);
        let found = self.client.get_points(request).await.map_err(|error| self.at_run_time(&error))?.result;
        let states = found.into_iter().filter_map(|point| {
            let (id, payload) = (convert::uuid(point.id)?, convert::json(point.payload));
            Some((id, (State::read_from(&payload)?, payload)))
        });
        Ok(states.collect())
    }

    async fn scroll(
        &self,
        collection: &str,
        from: Option<Uuid>,
        limit: u32,
        filter: Option<Filter>,
        fields: Option<&[&str]>,
    ) -> Result<(Vec<RetrievedPoint>, Option<Uuid>), Fault> {
        let mut request = ScrollPointsBuilder::new(collection).limit(limit).with_vectors(false);
        request = match fields {
            Some(fields) => {
                let fields = fields.iter().map(ToString::to_string).collect();
                request.with_payload(PayloadIncludeSelector { fields })
            }
            None => request.with_payload(true),
        };
        if let Some(from) = from {
            request = request.offset(PointId::from(from.to_string()));
        }
        if let Some(filter) = filter {
            request = request.filter(filter);
        }
        let page = self.client.scroll(request).await.map_err(|error| self.at_run_time(&error))?;
        Ok((page.result, page.next_page_offset.and_then(|next| convert::uuid(Some(next)))))
    }

    /// Of a question that a person waits for.
    fn failed(&self, action: &str, error: &QdrantError) -> Fault {
        self.faults.at_start(action, error)
    }

    /// Of a question in the middle of long work, which goes on after an outage.
    fn at_run_time(&self, error: &QdrantError) -> Fault {
        self.faults.at_run_time("read", error)
    }
}
