// Tests of runtimes that others have written, and the registry that they pull from. `go mod tidy` does not see the tests, which are no package of
// ours nor a tool: after it, `go get -t sigs.k8s.io/cri-tools/cmd/critest@VERSION` names what they need again.
module orlop.dev/testbed/conformance

go 1.26.8

tool github.com/google/go-containerregistry/cmd/registry

require (
	github.com/google/go-containerregistry v0.22.1 // indirect
	github.com/sirupsen/logrus v1.10.2 // indirect
	sigs.k8s.io/cri-tools v1.37.0 // indirect
)
