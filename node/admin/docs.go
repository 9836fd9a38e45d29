package admin

import (
	"bytes"
	"html/template"
	"maps"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

// docsPage lists the operations. It loads nothing from elsewhere: a node is often looked at where there is no internet.
var docsPage = template.Must(template.New("docs").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Title}} API</title>
<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;vertical-align:top}code{font-size:.95em}</style>
</head><body><h1>{{.Title}} API {{.Version}}</h1><p>{{.Description}}</p>
<p>The whole description, with all types: <a href="/openapi.json">openapi.json</a>, <a href="/openapi.yaml">openapi.yaml</a>.
Metrics for Prometheus: <a href="/metrics">metrics</a>.</p>
<table>{{range .Routes}}<tr><td><code>{{.Method}}</code></td><td><code>{{.Path}}</code></td><td>{{.Summary}}</td></tr>
{{end}}</table></body></html>
`))

// docs serves a page about the API that spec describes.
func docs(spec *huma.OpenAPI) http.Handler {
	type route struct{ Method, Path, Summary string }
	page := struct {
		Title, Version, Description string
		Routes                      []route
	}{Title: spec.Info.Title, Version: spec.Info.Version, Description: spec.Info.Description}
	for _, path := range slices.Sorted(maps.Keys(spec.Paths)) {
		item := spec.Paths[path]
		for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if op != nil {
				page.Routes = append(page.Routes, route{op.Method, path, op.Summary})
			}
		}
	}
	var html bytes.Buffer
	err := docsPage.Execute(&html, page)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err != nil {
			writeProblem(w, err)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		_, _ = w.Write(html.Bytes()) // the client is gone: nobody to tell
	})
}
