"""`make bench`: our workloads and the same ones on what people use today, in one run; see benches/README.md."""
