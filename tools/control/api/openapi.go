package api

import (
	"fmt"
	"net/http"
	"sync"

	"github.com/goccy/go-yaml"

	"github.com/shuntio/shunt/docs"
)

// documentJSON is docs/openapi.yaml as JSON.
var documentJSON = sync.OnceValues(func() ([]byte, error) { return yaml.YAMLToJSON(docs.OpenAPI) })

func (s *Server) openAPIJSON(w http.ResponseWriter, _ *http.Request) error {
	text, err := documentJSON()
	if err != nil {
		return fmt.Errorf("the OpenAPI document: %w", err)
	}
	return writeDocument(w, "application/json", text)
}

func writeDocument(w http.ResponseWriter, media string, text []byte) error {
	w.Header().Set("Content-Type", media)
	_, _ = w.Write(text) // the caller went away
	return nil
}
