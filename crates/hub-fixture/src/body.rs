//! The body of an answer: frames read on demand, damaged, slowed, stalled or cut as told. The only place that counts bytes.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::content::Source;
use crate::log::OpenLine;

/// Largest frame, in bytes: the log counts frames as the connection takes them, so they bound its error.
const FRAME_BYTES: u64 = 64 << 10;

/// What a body and its connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    /// Rises each time the connection has handed all it holds to the kernel.
    pub(crate) flushes: AtomicU64,
    /// Whether the connection is to end with a reset.
    pub(crate) reset: AtomicBool,
}

/// What happens to a body on its way out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mishaps {
    pub(crate) cut_after: Option<u64>,
    pub(crate) reset_after: Option<u64>,
    pub(crate) stall_after: Option<u64>,
    /// One byte at a time after so many, with so much time between.
    pub(crate) trickle: Option<(u64, Duration)>,
    /// Zeros after the content's own bytes.
    pub(crate) extra: u64,
    /// Whether the length is not told.
    pub(crate) no_length: bool,
    /// Damaged bytes, as a range of the file.
    pub(crate) corrupt: Option<Range<u64>>,
    pub(crate) bytes_per_second: Option<u64>,
}

/// A range of some content on its way to a client.
pub(crate) struct Body {
    source: Source,
    /// What is left, as a range of the content.
    left: Range<u64>,
    sent: u64,
    mishaps: Mishaps,
    line: OpenLine,
    wire: Arc<Wire>,
    flushes_at_cut: Option<u64>,
    started: Option<Instant>,
    trickled: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body {
    pub(crate) fn new(source: Source, range: Range<u64>, mishaps: Mishaps, line: OpenLine, wire: Arc<Wire>) -> Body {
        let (flushes_at_cut, started, trickled, timer) = (None, None, None, None);
        Body { source, left: range, sent: 0, mishaps, line, wire, flushes_at_cut, started, trickled, timer }
    }

    /// Bytes not yet sent.
    fn to_send(&self) -> u64 {
        self.left.end - self.left.start + self.mishaps.extra
    }

    /// Ready at `deadline`.
    fn wait_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        Poll::Ready(())
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // hyper drops what it still holds when a body fails: fail only after it has flushed, so that exactly the promised bytes arrive.
        let before = *self.flushes_at_cut.get_or_insert_with(|| self.wire.flushes.load(Relaxed));
        loop {
            if self.timer.is_none() && self.wire.flushes.load(Relaxed) > before {
                return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "cut on demand"));
            }
            ready!(self.wait_until(Instant::now() + Duration::from_millis(2), cx));
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.to_send() == 0 {
            return Poll::Ready(None);
        }
        let in_content = this.left.end - this.left.start;
        let mut len = FRAME_BYTES.min(if in_content > 0 { in_content } else { this.mishaps.extra });
        if let Some(stall) = this.mishaps.stall_after {
            if this.sent >= stall {
                // Nothing wakes this body again; hyper watches the connection and drops it when the client leaves.
                return Poll::Pending;
            }
            len = len.min(stall - this.sent);
        }
        if let Some(reset) = this.mishaps.reset_after {
            if this.sent >= reset {
                this.wire.reset.store(true, Relaxed);
                return Poll::Ready(Some(Err(ready!(this.poll_cut(cx)))));
            }
            len = len.min(reset - this.sent);
        }
        if let Some((after, every)) = this.mishaps.trickle {
            if this.sent >= after {
                len = 1;
                let due = *this.trickled.get_or_insert_with(|| Instant::now() + every);
                ready!(this.wait_until(due, cx));
                this.trickled = None;
            } else {
                len = len.min(after - this.sent);
            }
        }
        if let Some(cut) = this.mishaps.cut_after {
            if this.sent >= cut {
                return Poll::Ready(Some(Err(ready!(this.poll_cut(cx)))));
            }
            len = len.min(cut - this.sent);
        }
        if let Some(rate) = this.mishaps.bytes_per_second {
            let rate = rate.max(1);
            len = len.min((rate / 32).max(1));
            let started = *this.started.get_or_insert_with(Instant::now);
            let due = started + Duration::from_secs_f64(this.sent as f64 / rate as f64);
            if this.timer.is_some() || due > Instant::now() {
                ready!(this.wait_until(due, cx));
            }
        }
        if in_content == 0 {
            this.mishaps.extra -= len;
            this.sent += len;
            this.line.sent(len);
            return Poll::Ready(Some(Ok(Frame::data(vec![0; len as usize].into()))));
        }
        let range = this.left.start..this.left.start + len;
        let mut data = this.source.read(range.clone())?;
        if let Some(corrupt) = &this.mishaps.corrupt {
            data = flip(data, &range, corrupt);
        }
        this.left.start += len;
        this.sent += len;
        this.line.sent(len);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.to_send() == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.mishaps.no_length { SizeHint::default() } else { SizeHint::with_exact(self.to_send()) }
    }
}

/// `data`, which is `range` of a file, with the bytes of `corrupt` inverted.
fn flip(data: Bytes, range: &Range<u64>, corrupt: &Range<u64>) -> Bytes {
    let start = corrupt.start.max(range.start);
    let end = corrupt.end.min(range.end);
    if start >= end {
        return data;
    }
    let mut data = Vec::from(data);
    for byte in &mut data[(start - range.start) as usize..(end - range.start) as usize] {
        *byte = !*byte;
    }
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_overlap_is_flipped() {
        let data = Bytes::from_static(&[0; 4]);
        assert_eq!(flip(data.clone(), &(10..14), &(11..13))[..], [0, 255, 255, 0]);
        assert_eq!(flip(data.clone(), &(10..14), &(0..11))[..], [255, 0, 0, 0]);
        assert_eq!(flip(data.clone(), &(10..14), &(13..99))[..], [0, 0, 0, 255]);
        assert_eq!(flip(data, &(10..14), &(14..20))[..], [0; 4]);
    }
}
