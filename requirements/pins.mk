# `make pins` in the folder above: exact versions with hashes, and no address of an index.
COMPILE = $(RESOLVER) --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header

all:
	$(COMPILE) --output-file serve.txt serve.in ../pyproject.toml
	$(COMPILE) --output-file test.txt --extra test serve.in ../pyproject.toml
	$(COMPILE) --output-file bench.txt --extra bench --constraint test.txt serve.in ../pyproject.toml
	$(COMPILE) --output-file postgres.txt postgres.in
