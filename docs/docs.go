// Package docs holds those documents of this folder that programs serve.
package docs

import _ "embed" // of the documents

// OpenAPI is the description of the daemon's API, made of its Go types by go generate ./tools/control/api.
//
//go:embed openapi.yaml
var OpenAPI []byte
