//! Which posts one collection has and the other lacks: both are read in the order of their ids, side by side, so that memory
//! does not grow with them.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use crate::error::Fault;
use crate::store::{Collections, Seen};

/// Points in one request.
const PAGE: u32 = 1_000;
/// Posts that seem to lack are looked at again, for posts come in while both are read. More than so many are a gap in any
/// case, and are only counted.
const AGAIN: usize = 1_000;
/// So long: the writers of both read the same topic, and are hardly apart.
const GRACE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// Ids that are shown of each kind.
const SHOWN: usize = 20;

/// The posts of both collections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Posts {
    /// Posts of the live collection.
    pub live: u64,
    /// Posts of the new one.
    pub new: u64,
    /// Posts that only the live collection has.
    pub missing: u64,
    /// Ids of the first of them.
    pub missing_ids: Vec<String>,
    /// Posts that only the new one has: as a rule deletions that it has not seen.
    pub surplus: u64,
    /// Ids of the first of them.
    pub surplus_ids: Vec<String>,
    /// Posts with a picture in the live collection, and without it in the new one.
    pub without_picture: u64,
    /// Ids of the first of them.
    pub without_picture_ids: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    Missing,
    Surplus,
    WithoutPicture,
}

/// Compares the posts of two collections.
///
/// # Errors
/// The server fails, or one of the collections is gone.
pub async fn posts(collections: &Collections, live: &str, new: &str) -> Result<Posts, Fault> {
    let (mut one, mut other) = (Pages::new(collections, live), Pages::new(collections, new));
    let mut told = Posts::default();
    let mut doubtful: Vec<(Gap, Seen)> = Vec::new();
    loop {
        one.fill().await?;
        other.fill().await?;
        let gap = match (one.first(), other.first()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(&other),
        };
        let found = match gap {
            Ordering::Less => one.take().map(|seen| (Gap::Missing, seen)),
            Ordering::Greater => other.take().map(|seen| (Gap::Surplus, seen)),
            Ordering::Equal => {
                let (live, new) = (one.take(), other.take());
                let lacks = live.is_some_and(|live| !live.image_pending);
                new.filter(|new| lacks && new.image_pending).map(|seen| (Gap::WithoutPicture, seen))
            }
        };
        let Some((gap, seen)) = found else { continue };
        match doubtful.len() < AGAIN {
            true => doubtful.push((gap, seen)),
            false => told.count(gap, &seen),
        }
    }
    (told.live, told.new) = (one.taken, other.taken);
    if told.missing + told.surplus + told.without_picture == 0 {
        doubtful = look_again(collections, live, new, doubtful).await?;
    }
    for (gap, seen) in &doubtful {
        told.count(*gap, seen);
    }
    Ok(told)
}

/// Those that still are as they seemed, after a while.
async fn look_again(
    collections: &Collections,
    live: &str,
    new: &str,
    mut doubtful: Vec<(Gap, Seen)>,
) -> Result<Vec<(Gap, Seen)>, Fault> {
    let deadline = Instant::now() + GRACE;
    loop {
        let ids = doubtful.iter().map(|(_, seen)| seen.id).collect::<Vec<_>>();
        let (in_live, in_new) = tokio::try_join!(collections.present(live, &ids), collections.present(new, &ids))?;
        let find = |seen: &[Seen], id: Uuid| seen.iter().find(|seen| seen.id == id).map(|seen| seen.image_pending);
        doubtful.retain(|(gap, seen)| match (find(&in_live, seen.id), find(&in_new, seen.id)) {
            (Some(_), None) => *gap == Gap::Missing,
            (None, Some(_)) => *gap == Gap::Surplus,
            (Some(false), Some(true)) => *gap == Gap::WithoutPicture,
            _ => false,
        });
        // A picture that is not there does not come by waiting.
        let may_change = doubtful.iter().any(|(gap, _)| *gap != Gap::WithoutPicture);
        if !may_change || Instant::now() >= deadline {
            return Ok(doubtful);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Posts {
    fn count(&mut self, gap: Gap, seen: &Seen) {
        let (count, ids) = match gap {
            Gap::Missing => (&mut self.missing, &mut self.missing_ids),
            Gap::Surplus => (&mut self.surplus, &mut self.surplus_ids),
            Gap::WithoutPicture => (&mut self.without_picture, &mut self.without_picture_ids),
        };
        *count += 1;
        if ids.len() < SHOWN {
            ids.push(seen.post_id.clone());
        }
    }
}

/// A collection, a page at a time.
struct Pages<'a> {
    collections: &'a Collections,
    collection: &'a str,
    page: VecDeque<Seen>,
    /// `None`: the last page was read.
    next: Option<Option<Uuid>>,
    taken: u64,
}

impl<'a> Pages<'a> {
    fn new(collections: &'a Collections, collection: &'a str) -> Self {
        Self { collections, collection, page: VecDeque::new(), next: Some(None), taken: 0 }
    }

    async fn fill(&mut self) -> Result<(), Fault> {
        while self.page.is_empty() {
            let Some(from) = self.next else { break };
            let (page, next) = self.collections.page(self.collection, from, PAGE).await?;
            self.page = page.into();
            self.next = next.map(Some);
        }
        Ok(())
    }

    fn first(&self) -> Option<Uuid> {
        self.page.front().map(|seen| seen.id)
    }

    fn take(&mut self) -> Option<Seen> {
        let taken = self.page.pop_front();
        self.taken += u64::from(taken.is_some());
        taken
    }
}
