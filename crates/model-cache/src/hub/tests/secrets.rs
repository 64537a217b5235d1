//! What must be in no log and no error.

use super::*;

/// A log that keeps every field of every event and span, at all levels.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        *self.0.lock().unwrap() += &format!("{field}={value:?} ");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
        *self.0.lock().unwrap() += "\n";
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn neither_log_nor_error_shows_a_token_or_a_signature_and_a_warning_is_logged_once() {
    let log = Log::default();
    // With a single subscriber in the process, tracing lets the thread that meets a call site first decide for all, and other
    // tests' threads have none; a second one makes it ask every subscriber.
    let _second = tracing::Dispatch::new(log.clone());
    let guard = tracing::subscriber::set_default(log.clone());
    let (client, location) =
        on_cdn(|seen| answer(seen, "500 I", &[("X-HF-Warning", "api; this way ends soon")], b"out of order")).await;
    let mut errors = String::new();
    for _ in 0..3 {
        let error = client.get_range(&location, 0..12).await.err().unwrap();
        errors += &format!("{error} {error:?} {:?}\n", error.hint());
    }
    let cut = Scripted::start(|seen| answer(seen, "302 Found", &[("Location", "http://127.0.0.1:1/x?sig=s3cret")], b""));
    let error = info(&server::client(&cut.url, true)).await.unwrap_err();
    errors += &format!("{error} {error:?}");
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        errors += &format!(" {source} {source:?}");
        cause = source.source();
    }
    errors += &format!("{:?} {:?}", client.config(), location);
    drop(guard);
    let logged = log.0.lock().unwrap().clone();
    assert!(logged.contains("asking") && logged.contains("/blob"), "{logged}");
    assert_eq!(logged.matches("this way ends soon").count(), 1, "{logged}");
    for text in [&errors, &logged] {
        assert!(!text.contains("s3cret") && !text.contains("hf_secret"), "{text}");
    }
}
