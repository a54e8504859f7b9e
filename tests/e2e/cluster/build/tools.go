//go:build tools

// Package cluster keeps in go.mod what is built by path and imported by nothing here.
package cluster

import (
	_ "github.com/kedacore/keda/v2/cmd/adapter"
	_ "github.com/kedacore/keda/v2/cmd/operator"
	_ "github.com/kserve/kserve/cmd/manager"
	_ "helm.sh/helm/v3/cmd/helm"
	_ "sigs.k8s.io/metrics-server/cmd/metrics-server"
)
