//! `cat`: a file's bytes, from its slice to stdout.

use crate::{
    args::ByteRange,
    context::Context,
    exit::{Code, Failure},
    output, render,
};
use std::{
    io::{self, IsTerminal, Write},
    ops::Range,
};
use tabagent_model_cache::{Error, ModelFile};
use tokio_util::sync::CancellationToken;

/// Written at once: an interrupt is heard in between.
const STEP: usize = 1 << 20;

pub(super) async fn cat(
    cx: &Context,
    repo: String,
    path: String,
    range: Option<ByteRange>,
    check: bool,
) -> Result<Code, Failure> {
    if cx.global.json {
        let failure = Failure::new(Code::Usage, "cat writes the file's own bytes, which are not JSON");
        return Err(failure.hint(format!("model-cache cat {} {}", render::shell(&repo), render::shell(&path))));
    }
    let cache = cx.open_there().await?;
    let (asked, opened) = (repo.clone(), path.clone());
    let file = cx.blocking(move || cache.open_file(&repo, &path)).await?;
    let size_bytes = file.len() as u64;
    let range = match range {
        None => 0..size_bytes,
        Some(range) => range.within(size_bytes).map_err(|Range { start, end }| Error::InvalidRange {
            path: render::clean(&opened),
            start,
            end,
            size_bytes,
        })?,
    };
    let cancel = cx.interrupt.token();
    let task = tokio::task::spawn_blocking(move || copy(&file, range, check, &cancel));
    match cx.interrupt.during(task).await {
        Some(Ok(Ok(true))) => Ok(Code::Done),
        Some(Ok(Ok(false))) => {
            let command = format!("model-cache cat {asked} {}", render::shell(&opened));
            Err(Failure::new(Code::Usage, format!("{opened} is not text, and stdout is a terminal"))
                .hint(format!("{command} | xxd | head\n{command} > FILE")))
        }
        Some(Ok(Err(error))) if error.kind() == io::ErrorKind::Interrupted => Err(cx.interrupt.failure()),
        Some(Ok(Err(error))) if error.kind() == io::ErrorKind::InvalidData => {
            Err(Failure::new(Code::Integrity, error.to_string()).hint(format!("model-cache repair {asked}")))
        }
        Some(Ok(Err(error))) => output::written(Err(error)).map(|()| Code::Done),
        Some(Err(_)) => Err(Failure::new(Code::Other, "model-cache failed inside; this is a bug")),
        None => Err(cx.interrupt.failure()),
    }
}

/// Copies `range`, each part checked first if it is to be; `false`, and nothing copied, if it would make a terminal do things.
fn copy(file: &ModelFile, range: Range<u64>, check: bool, cancel: &CancellationToken) -> io::Result<bool> {
    let bytes = &file[range.start as usize..range.end as usize];
    if io::stdout().is_terminal() && !render::is_terminal_text(bytes) {
        return Ok(false);
    }
    let mut out = io::stdout().lock();
    let mut at = range.start;
    for part in bytes.chunks(STEP) {
        if cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let end = at + part.len() as u64;
        if check {
            file.checked(at..end).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        out.write_all(part)?;
        at = end;
    }
    out.flush()?;
    Ok(true)
}
