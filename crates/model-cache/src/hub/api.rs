//! The JSON endpoints: what a repo is at a revision, and which files a commit holds.

use super::{
    auth::is_endpoint,
    client::{Answer, HubClient, bad_answer, page_answer, page_in_place},
    field::Field,
    retry::{Observer, retry},
    status::Subject,
    tree::{Listing, TreeFile},
    wire::{info_url, next_link, shown, tree_url},
};
use crate::{
    error::Result,
    name::{CommitId, RepoId, Revision, printable},
};
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use std::collections::HashSet;
use url::Url;

/// Largest model info accepted; real ones have up to a few MiB (`siblings`, `cardData`).
const MAX_INFO_BYTES: u64 = 8 << 20;
/// Largest tree page accepted; a page of 1000 entries has about 0.4 MiB.
const MAX_PAGE_BYTES: u64 = 16 << 20;
/// Most tree pages followed.
const MAX_PAGES: usize = 10_000;

/// What the Hub says about a repo at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelInfo {
    /// The commit the revision stands for.
    pub(crate) commit: CommitId,
    /// `pipeline_tag`, such as `text-generation`.
    pub(crate) task: Option<String>,
    /// `library_name`, such as `transformers`.
    pub(crate) library: Option<String>,
    /// Whether only its owners see it.
    pub(crate) private: bool,
    /// Whether its files ask for an accepted licence.
    pub(crate) gated: bool,
    /// Whether the Hub's operators switched it off.
    pub(crate) disabled: bool,
}

/// As much of the JSON as is read; what is only told on is taken in any shape, so that a change there breaks nothing.
#[derive(Deserialize)]
struct Info<'a> {
    #[serde(default, borrow)]
    sha: Field<'a>,
    #[serde(default, borrow)]
    pipeline_tag: Field<'a>,
    #[serde(default, borrow)]
    library_name: Field<'a>,
    #[serde(default, borrow)]
    private: Field<'a>,
    #[serde(default, borrow)]
    gated: Field<'a>,
    #[serde(default, borrow)]
    disabled: Field<'a>,
}

impl HubClient {
    /// What `repo` is at `revision`, above all the commit. One request, tried again by the policy.
    ///
    /// # Errors
    /// `RepoNotFound`, `RevisionNotFound`, `BadToken`, `Disabled`, `BadAnswer`, and those of the network.
    pub(crate) async fn model_info(&self, repo: &RepoId, revision: &Revision, observer: Observer<'_>) -> Result<ModelInfo> {
        self.need_network(|| format!("look up {repo} at {revision}"))?;
        let url = info_url(&self.config().endpoint, repo, revision);
        let subject = Subject { repo: repo.clone(), revision: revision.clone(), path: None };
        retry(&self.config().retry, observer, || async {
            let answer = self.ask(url.clone(), &subject).await?;
            let asked = answer.url.clone();
            let body = self.read_body(answer, MAX_INFO_BYTES).await?;
            parse_info(&body, revision).map_err(|reason| bad_answer(&asked, reason))
        })
        .await
    }

    /// Every file of `repo` at `commit`, in the Hub's order. One request for each page of 1000 entries, each tried again by
    /// the policy.
    ///
    /// A page's `next` link is followed as given, but only to the endpoint's own scheme, host and port, and to none twice.
    ///
    /// # Errors
    /// As [`Self::model_info`]; `BadAnswer` also names entries that can't be or can't stand side by side (see [`Listing`]).
    pub(crate) async fn list_tree(&self, repo: &RepoId, commit: &CommitId, observer: Observer<'_>) -> Result<Vec<TreeFile>> {
        self.need_network(|| format!("list the files of {repo}"))?;
        let first = tree_url(&self.config().endpoint, repo, commit);
        let subject = Subject { repo: repo.clone(), revision: commit.as_str().parse()?, path: None };
        let mut listing = Listing::default();
        let mut seen = HashSet::from([first.clone()]);
        let mut next = Some(first.clone());
        while let Some(url) = next.take() {
            let (body, link) = retry(&self.config().retry, observer, || async {
                let answer = self.ask(url.clone(), &subject).await?;
                let link = next_page(&self.config().endpoint, &answer.url, answer.response.headers())?;
                Ok((self.read_body(answer, MAX_PAGE_BYTES).await?, link))
            })
            .await?;
            listing.add_page(&body).map_err(|reason| bad_answer(&url, reason))?;
            if let Some(link) = link {
                if seen.len() >= MAX_PAGES {
                    return Err(bad_answer(&url, format!("its listing has more than {MAX_PAGES} pages")));
                }
                if !seen.insert(link.clone()) {
                    return Err(bad_answer(&url, "its next page is one already read"));
                }
                next = Some(link);
            }
        }
        listing.finish().map_err(|reason| bad_answer(&first, reason))
    }

    /// A GET of a JSON endpoint that succeeded.
    async fn ask(&self, url: Url, subject: &Subject) -> Result<Answer> {
        let answer = self.get(url, true, None, self.config().metadata_timeout).await?;
        match answer.status() {
            200 => match page_in_place(answer.response.headers()) {
                Some(kind @ "text/html") => Err(page_answer(&answer.url, kind)),
                _ => Ok(answer),
            },
            _ => Err(self.refused(answer, subject).await),
        }
    }
}

/// The address of the page after the one at `url`.
pub(super) fn next_page(endpoint: &Url, url: &Url, headers: &HeaderMap) -> Result<Option<Url>> {
    for header in headers.get_all(LINK) {
        let Ok(header) = std::str::from_utf8(header.as_bytes()) else { continue };
        let Some(target) = next_link(header) else { continue };
        let link = url.join(target).map_err(|_| bad_answer(url, "its next page has no address"))?;
        if !is_endpoint(endpoint, &link) || !link.username().is_empty() || link.password().is_some() {
            return Err(bad_answer(url, format!("its next page is at {}, not at {}", shown(&link), shown(endpoint))));
        }
        return Ok(Some(link));
    }
    Ok(None)
}

/// Reads a model info; the reason, if it can't be used.
pub(super) fn parse_info(body: &[u8], revision: &Revision) -> Result<ModelInfo, String> {
    let info: Info<'_> =
        serde_json::from_slice(body).map_err(|error| format!("it is not a model's JSON ({})", printable(&error.to_string())))?;
    let Some(sha) = info.sha.as_str() else {
        return Err("it names no commit".to_owned());
    };
    let commit: CommitId = sha.parse().map_err(|_| format!("its commit {:?} is not one", printable(sha)))?;
    if revision.as_commit().is_some_and(|asked| asked != commit) {
        return Err(format!("commit {revision} was asked for, {commit} is described"));
    }
    let text = |field: &Field<'_>| field.as_str().filter(|text| !text.is_empty()).map(printable);
    Ok(ModelInfo {
        commit,
        task: text(&info.pipeline_tag),
        library: text(&info.library_name),
        private: info.private.as_bool().unwrap_or(false),
        // false, or the way access is granted: "auto", "manual".
        gated: info.gated.as_bool().unwrap_or(info.gated.as_str().is_some()),
        disabled: info.disabled.as_bool().unwrap_or(false),
    })
}
