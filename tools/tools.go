//go:build tools

// Package tools keeps the programs that regops runs beside it in go.mod.
package tools

import (
	_ "github.com/open-policy-agent/opa"
	_ "go.etcd.io/etcd/server/v3/etcdmain"
)
