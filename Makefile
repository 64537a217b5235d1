# make demo       see it work: pull, kill, resume, read, remove
# make test       everything that must hold before a commit; CI runs this
# make check      the part of it that runs nothing: format, lints, docs, arrows between crates
# make figures    the numbers of docs/design.md, measured anew (minutes, and 20 GiB of disk)
# make figures-loaders   those of docs/loaders.md: Python, ONNX Runtime, candle (minutes, and 5 GiB)
# make loaders    llama.cpp from the store, beside the same file by path (the first time ten minutes, to build it)
# make wheel      the Python module, into target/wheels
# make setup      only what the others need from Debian and PyPI
# make clean      remove what was built
#
# A fresh machine needs rustc with cargo, gcc, make and python3; scripts/setup gets the rest.

.PHONY: demo test check figures figures-loaders loaders wheel setup clean
.NOTPARALLEL:

demo: setup
	@scripts/with scripts/demo

test: setup
	@scripts/with scripts/test

check: setup
	@scripts/with scripts/check

figures: setup
	@scripts/with scripts/figures

loaders: setup
	@scripts/with scripts/loaders

wheel: setup
	@scripts/with scripts/wheel

figures-loaders: wheel
	@scripts/with scripts/figures-loaders

setup:
	@scripts/setup

clean:
	cargo clean
	rm -rf .build
