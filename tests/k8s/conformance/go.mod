// Tests of runtimes that others have written, and the registry that they pull from.
module orlop.dev/testbed/conformance

go 1.26.8

tool github.com/google/go-containerregistry/cmd/registry

require (
	github.com/google/go-containerregistry v0.22.1 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
)
