# make demo       see it work: pull, kill, resume, read, remove
# make test       everything that must hold before a commit; CI runs this
# make check      the part of it that runs nothing: format, lints, docs, arrows between crates
# make bench      our workloads beside curl, hf, aria2c, LMDB and others, in turns (half an hour, 50 GiB of disk; benches/README.md)
#                 ONLY=pull,import  ROUNDS=5  RECORD=1 into benches/record; make bench-list: what there is
# make bench-smoke       that each of them runs, on tiny inputs: part of `make test`
# make bench-readme      the README's figures, anew from the newest record
# make figures-loaders   the figures of docs/loaders.md: Python, ONNX Runtime, candle (minutes, and 5 GiB)
# make torture    kills by the thousand against a store, and what must hold after each; ten seconds, or ARGS="--kills 2000", ARGS=--help
# make loaders    llama.cpp from the store, beside the same file by path (the first time ten minutes, to build it)
# make fuzz       hostile input at random, TARGET=gguf of fuzz/ for SECONDS=600; without a target each in turn (fuzz/README.md)
# make wheel      the Python module, into target/wheels
# make mutants    takes the code behind each rule of the design out, and sees its test fail (half an hour; ONLY="2 5" for some)
# make setup      only what the others need from Debian and PyPI
# make clean      remove what was built
#
# A fresh machine needs rustc with cargo, gcc, make and python3; scripts/setup gets the rest.

.PHONY: demo test check torture mutants fuzz bench bench-smoke bench-list bench-readme figures-loaders loaders wheel setup clean
.NOTPARALLEL:

demo: setup
	@scripts/with scripts/demo

test: setup
	@scripts/with scripts/test

check: setup
	@scripts/with scripts/check

bench: wheel
	@scripts/with scripts/bench $(if $(ONLY),--only "$(ONLY)") $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(RECORD),--record) $(ARGS)

bench-smoke: setup
	@scripts/with scripts/bench --smoke $(if $(ONLY),--only "$(ONLY)")

bench-list: setup
	@scripts/with scripts/bench --list

bench-readme: setup
	@scripts/with scripts/bench --readme

torture: setup
	@scripts/with cargo run --locked --quiet --package torture -- $(ARGS)

mutants: setup
	@scripts/with scripts/mutate $(ONLY)

loaders: setup
	@scripts/with scripts/loaders

fuzz: setup
	@scripts/with scripts/fuzz $(or $(TARGET),all) $(or $(SECONDS),600)

wheel: setup
	@scripts/with scripts/wheel

figures-loaders: wheel
	@scripts/with scripts/figures-loaders

setup:
	@scripts/setup

clean:
	cargo clean
	rm -rf .build
