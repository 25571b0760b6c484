# Every command that development needs; CI calls these and nothing else.

.PHONY: test check fmt demo bench soak docs chart golden setup image image-test reproduce

# Everything: tools, format, lints, unit, integration and doc tests, and the independent check of the golden files.
test:
	./scripts/test.sh

# What a developer runs between edits.
check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

fmt:
	cargo fmt

demo:
	cargo run -- demo

# Relay beside nginx, queue beside a plain file, memory, delivery of a backlog, a start with 10 GB, selection. Takes about a
# quarter of an hour after the build.
bench:
	./scripts/setup-bench.sh
	cargo bench --bench relay --bench queue --bench memory --bench drain --bench backlog --bench selection

# Ten minutes of load with destinations that flap, lag and are dead; FLAGTAP_SOAK_SECONDS for longer.
soak:
	cargo bench --bench soak

# The pages that are generated from the code.
docs:
	cargo run --quiet -- metrics > docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md
	cargo run --quiet -- destinations > docs/destinations.md.new
	mv docs/destinations.md.new docs/destinations.md

# What is generated of the Helm chart: values.schema.json, and the table in its README.
chart:
	cargo build --quiet
	.tools/helm-python/bin/python scripts/chart.py $${CARGO_TARGET_DIR:-target}/debug/flagtap

# Writes tests/golden anew from tests/traffic, and has the oracle judge the result; and the chart's renders. Read the difference before you commit.
golden:
	FLAGTAP_UPDATE_GOLDEN=1 cargo test --test it -- replay:: mappings::
	./scripts/oracle.py
	cd tests/helm && FLAGTAP_UPDATE_GOLDEN=1 ../../.tools/helm-python/bin/python -m unittest -k renders_as_it_did test_renders

setup:
	./scripts/setup-tests.sh

# The image, without a registry: docs/release.md. The static build takes a quarter of an hour on two cores.
image:
	./scripts/setup-image.sh
	./scripts/image.sh

# Takes the image apart and runs what is in it. Needs root.
image-test: image
	./tests/image/check.py target/image/oci

# The binary twice, in two folders, and compared.
reproduce:
	./scripts/reproduce.sh
