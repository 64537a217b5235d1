# make demo       see it work: pull, kill, resume, read, remove
# make test       everything that must hold before a commit; CI runs this
# make check      the part of it that runs nothing: format, lints, docs, arrows between crates
# make figures    the numbers of the README, measured anew (minutes, and 20 GiB of disk)
# make loaders    llama.cpp from the store, beside the same file by path (the first time ten minutes, to build it)
# make wheel      the Python module, into target/wheels
# make figures-python   those of Python programs
# make setup      only what the others need from Debian and PyPI
# make clean      remove what was built
#
# A fresh machine needs rustc with cargo, gcc, make and python3; scripts/setup gets the rest.

.PHONY: demo test check figures figures-python loaders wheel setup clean
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

figures-python: wheel
	@scripts/with sh -c 'scripts/wheel-env "$$HOME/venv" && "$$HOME/venv/bin/python" scripts/figures-python'

setup:
	@scripts/setup

clean:
	cargo clean
	rm -rf .build
