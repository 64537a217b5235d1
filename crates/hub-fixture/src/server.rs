//! The running hub: three listeners on a runtime of their own, and the handle tests hold.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};

use crate::body::Wire;
use crate::faults::{Fault, Faults, Site};
use crate::log::{Log, Request, Server};
use crate::origin::Origin;
use crate::repo::{File, Repo};
use crate::store::{Served, Store, hash_all};
use crate::tls::Tls;

/// Half of what the kernel may hold of an answer (it doubles the number), so that "sent" is not far from "arrived".
const SEND_BUFFER_BYTES: u32 = 128 << 10;

/// Most a connection holds in user memory, for the same reason.
const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Settings of a [`Hub`] before it starts.
#[derive(Debug)]
pub struct HubBuilder {
    repos: Vec<Repo>,
    port: u16,
    cdn_port: u16,
    page_entries: usize,
    url_lifetime: Duration,
    log_file: Option<PathBuf>,
    tls: Option<Tls>,
    cdn_tls: Option<Tls>,
}

impl HubBuilder {
    /// Adds a repo to serve.
    pub fn repo(mut self, repo: Repo) -> HubBuilder {
        self.repos.push(repo);
        self
    }

    /// Sets the port of the Hub. Default: 0, any free one.
    pub fn port(mut self, port: u16) -> HubBuilder {
        self.port = port;
        self
    }

    /// Sets the port of the CDN. Default: 0, any free one.
    pub fn cdn_port(mut self, port: u16) -> HubBuilder {
        self.cdn_port = port;
        self
    }

    /// Sets the tree entries per page, at least 1. Default: 1000 (50 when expanded, at most).
    pub fn page_entries(mut self, entries: usize) -> HubBuilder {
        self.page_entries = entries.max(1);
        self
    }

    /// Sets how long a signed CDN URL works. Default: one hour.
    pub fn url_lifetime(mut self, lifetime: Duration) -> HubBuilder {
        self.url_lifetime = lifetime;
        self
    }

    /// Appends a line per finished answer to a file. Default: none.
    pub fn log_file(mut self, path: impl Into<PathBuf>) -> HubBuilder {
        self.log_file = Some(path.into());
        self
    }

    /// Has the Hub speak TLS. Default: plain HTTP.
    pub fn tls(mut self, tls: Tls) -> HubBuilder {
        self.tls = Some(tls);
        self
    }

    /// Has the CDN speak TLS. Default: plain HTTP.
    pub fn cdn_tls(mut self, tls: Tls) -> HubBuilder {
        self.cdn_tls = Some(tls);
        self
    }

    /// Hashes every file, then starts serving. Returns once all ports listen.
    ///
    /// # Errors
    /// A file that cannot be read, a port that is taken, a log file that cannot be opened.
    pub fn start(self) -> io::Result<Hub> {
        let mut store = Store::default();
        for repo in self.repos {
            store.insert(Served::new(repo)?);
        }
        let log = Log::default();
        if let Some(path) = &self.log_file {
            log.write_to(path)?;
        }
        let ports = (self.port, self.cdn_port);
        let tls = (self.tls, self.cdn_tls);
        let (connections, watched) = watch::channel(());
        let base =
            |address: SocketAddr, tls: Option<Tls>| format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let make_origin = move |hub: SocketAddr, cdn: SocketAddr, abroad: SocketAddr| Origin {
            store: RwLock::new(store),
            faults: Faults::default(),
            log,
            signatures: Default::default(),
            page_entries: self.page_entries,
            url_lifetime: self.url_lifetime,
            hub_base: base(hub, tls.0),
            cdn_base: base(cdn, tls.1),
            abroad_base: base(abroad, None),
            answers: AtomicU64::new(0),
            connections,
            down_until: Mutex::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let (started, wait) = mpsc::channel();
        // A thread with a runtime of its own: tests may sit in a runtime, in none, or in one they shut down.
        let thread = std::thread::Builder::new().name("hub-fixture".to_owned()).spawn(move || {
            let run = || -> io::Result<()> {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                runtime.block_on(async {
                    let (hub, cdn) = (listen(Ipv4Addr::LOCALHOST, ports.0)?, listen(Ipv4Addr::LOCALHOST, ports.1)?);
                    // Another host by its address too, where there is more than one loopback address.
                    let abroad = listen(Ipv4Addr::new(127, 0, 0, 2), 0).or_else(|_| listen(Ipv4Addr::LOCALHOST, 0))?;
                    let origin = Arc::new(make_origin(hub.local_addr()?, cdn.local_addr()?, abroad.local_addr()?));
                    for (listener, server, tls) in
                        [(hub, Server::Hub, tls.0), (cdn, Server::Cdn, tls.1), (abroad, Server::Abroad, None)]
                    {
                        tokio::spawn(accept(listener, server, tls, origin.clone(), watched.clone()));
                    }
                    let _ = started.send(Ok(origin));
                    // Ends when the handle is dropped; dropping the runtime then ends every connection.
                    let _ = stopped.await;
                    Ok(())
                })
            };
            if let Err(e) = run() {
                let _ = started.send(Err(e));
            }
        })?;
        let origin = wait.recv().unwrap_or_else(|_| Err(io::Error::other("the fixture's thread ended before it listened")))?;
        Ok(Hub { origin, stop: Some(stop), thread: Some(thread) })
    }
}

/// A running Hub, its CDN, and a host that is neither; all stop when this is dropped.
#[derive(Debug)]
pub struct Hub {
    origin: Arc<Origin>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts a hub with the default settings.
    ///
    /// # Panics
    /// If a file cannot be read or no port be had; [`HubBuilder::start`] returns these as errors.
    pub fn start(repos: Vec<Repo>) -> Hub {
        repos.into_iter().fold(Hub::builder(), HubBuilder::repo).start().expect("the hub fixture starts")
    }

    /// Settings to start a hub with.
    pub fn builder() -> HubBuilder {
        HubBuilder {
            repos: Vec::new(),
            port: 0,
            cdn_port: 0,
            page_entries: 1000,
            url_lifetime: Duration::from_secs(3600),
            log_file: None,
            tls: None,
            cdn_tls: None,
        }
    }

    /// What to give a client as `HF_ENDPOINT`: `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        self.origin.hub_base.clone()
    }

    /// The content host: `http://127.0.0.1:port`.
    pub fn cdn_endpoint(&self) -> String {
        self.origin.cdn_base.clone()
    }

    /// The host that is neither, where [`Fault::RedirectAbroad`] leads: `http://127.0.0.2:port`.
    pub fn abroad_endpoint(&self) -> String {
        self.origin.abroad_base.clone()
    }

    /// The faults in force. The handle may be cloned and moved to other threads.
    pub fn faults(&self) -> Faults {
        self.origin.faults.clone()
    }

    /// All requests since the start or the last [`clear_log`](Hub::clear_log), in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.origin.log.requests()
    }

    /// File bytes sent since then, by all servers: bodies of 200 and 206, without listings, redirects and errors.
    pub fn bytes_served(&self) -> u64 {
        self.requests().iter().filter(|request| request.served_file()).map(|request| request.body_bytes_sent).sum()
    }

    /// Forgets the requests so far. Answers under way are forgotten with them.
    pub fn clear_log(&self) {
        self.origin.log.clear();
    }

    /// Adds a repo, or replaces the one of that id.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn add(&self, repo: Repo) -> io::Result<()> {
        let served = Served::new(repo)?;
        self.write_store(|store| store.insert(served));
        Ok(())
    }

    /// Removes a repo; whether there was one. Signed URLs of its files go on working, as on the Hub.
    pub fn remove(&self, repo: &str) -> bool {
        self.write_store(|store| store.remove(repo))
    }

    /// Makes a commit on a branch (`dev`) or full ref (`refs/pr/1`): `files` over those it has. A new ref starts empty. Returns its id.
    ///
    /// # Panics
    /// If there is no such repo, or a file cannot be read.
    pub fn push<I: IntoIterator<Item: Into<File>>>(&self, repo: &str, revision: &str, files: I) -> String {
        let files = hash_all(files.into_iter().map(Into::into).collect()).expect("pushed files can be read");
        self.write_store(|store| store.push(repo, revision, files, &[])).expect("the repo pushed to exists")
    }

    /// Makes a commit that takes files away. Returns its id.
    ///
    /// # Panics
    /// If there is no such repo.
    pub fn delete(&self, repo: &str, revision: &str, paths: &[&str]) -> String {
        self.write_store(|store| store.push(repo, revision, Vec::new(), paths)).expect("the repo pushed to exists")
    }

    /// The commit a revision names now.
    pub fn commit(&self, repo: &str, revision: &str) -> Option<String> {
        Some(self.origin.store().repo(repo)?.commit(revision)?.id.clone())
    }

    /// What the hub says of a file: its digest and size.
    pub fn file(&self, repo: &str, revision: &str, path: &str) -> Option<FileInfo> {
        let commit = self.origin.store().repo(repo)?.commit(revision)?;
        let entry = commit.files.get(path)?;
        Some(FileInfo { size: entry.size, etag: entry.etag().to_owned(), oid: entry.oid.clone(), lfs: entry.sha256.is_some() })
    }

    /// Makes every signed URL given out so far invalid.
    pub fn expire_urls(&self) {
        self.origin.signatures.expire();
    }

    /// Closes all connections, answers under way included; new ones are welcome (see [`Fault::RefuseConnections`]).
    pub fn drop_connections(&self) {
        self.origin.drop_connections(None);
    }

    fn write_store<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        change(&mut self.origin.store.write().unwrap_or_else(|e| e.into_inner()))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the hub says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Length in bytes.
    pub size: u64,
    /// The digest in `X-Linked-Etag`: SHA-256 of an LFS file, git blob id of another.
    pub etag: String,
    /// Git's blob id; of an LFS file, that of its pointer.
    pub oid: String,
    /// Whether LFS stores the file.
    pub lfs: bool,
}

fn listen(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind((address, port).into())?;
    socket.listen(1024)
}

async fn accept(listener: TcpListener, server: Server, tls: Option<Tls>, origin: Arc<Origin>, dropped: watch::Receiver<()>) {
    let site = Site { server, method: None, url: "", file: None, drawn: None };
    let acceptor = tls.map(Tls::acceptor);
    loop {
        // An accept fails for want of descriptors; the client will try again, and so do we.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if origin.is_down() || origin.faults.strike(&site, |fault| (*fault == Fault::RefuseConnections).then_some(())).is_some() {
            continue;
        }
        let (origin, dropped, acceptor) = (origin.clone(), dropped.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let wire = Arc::<Wire>::default();
            let mut connection = Connection { stream, wire: wire.clone() };
            match acceptor {
                None => serve(connection, wire, server, origin, dropped).await,
                Some(Some(acceptor)) => {
                    if let Ok(connection) = acceptor.accept(connection).await {
                        serve(connection, wire, server, origin, dropped).await;
                    }
                }
                // A handshake that is cut: the client has said its hello.
                Some(None) => drop(connection.read(&mut [0; 64]).await),
            }
        });
    }
}

async fn serve(
    connection: impl AsyncRead + AsyncWrite + Unpin + 'static,
    wire: Arc<Wire>,
    server: Server,
    origin: Arc<Origin>,
    mut dropped: watch::Receiver<()>,
) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (origin, wire) = (origin.clone(), wire.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
            Ok::<_, Infallible>(origin.answer(server, hyper::Request::from_parts(head, body), wire).await)
        }
    });
    let serving = http1::Builder::new().max_buf_size(WRITE_BUFFER_BYTES).serve_connection(TokioIo::new(connection), service);
    dropped.mark_unchanged();
    tokio::select! {
        // Errors here are clients that left and bodies cut on demand.
        _ = serving => {}
        Ok(()) = dropped.changed() => {}
    }
}

/// A socket that tells when hyper has handed over all it held.
struct Connection {
    stream: TcpStream,
    wire: Arc<Wire>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.wire.reset.load(Relaxed) {
            // To close a socket that lingers for no time is to reset it.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.wire.flushes.fetch_add(1, Relaxed);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
