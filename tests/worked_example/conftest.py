"""The projects below this are no tests of ours: each is built and certified by tests/packaging."""

collect_ignore_glob = ["*"]
