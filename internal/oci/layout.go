package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// image is what a push puts into a repository.
type image struct {
	blobs    []blob // config and layers
	manifest blob
}

type blob struct {
	Descriptor
	content []byte
}

func newBlob(mediaType string, content []byte) blob {
	sum := sha256.Sum256(content)
	return blob{Descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(content))}, content}
}

// lay builds the image of module in a layout. Equal modules give equal digests.
func lay(module []byte, layout Layout) (image, error) {
	types := struct{ manifest, config, layer string }{manifest: "application/vnd.oci.image.manifest.v1+json"}
	switch layout {
	case LayoutArtifact:
		types.config, types.layer = "application/vnd.wasm.config.v0+json", "application/wasm"
		layer := newBlob(types.layer, module)
		return assemble(types.manifest, newBlob(types.config, mustJSON(map[string]any{
			"created":      "1970-01-01T00:00:00Z",
			"architecture": "wasm",
			"os":           "wasip1",
			"layerDigests": []string{layer.Digest},
		})), layer), nil
	case LayoutOCI:
		types.config, types.layer = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
	case LayoutDocker:
		types.manifest = "application/vnd.docker.distribution.manifest.v2+json"
		types.config, types.layer = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"
	default:
		return image{}, fmt.Errorf("layout %q: want %s", layout, strings.Join([]string{string(LayoutArtifact), string(LayoutOCI), string(LayoutDocker)}, ", "))
	}
	archive, err := tarOf("plugin.wasm", module)
	if err != nil {
		return image{}, err
	}
	packed, err := gzipOf(archive)
	if err != nil {
		return image{}, err
	}
	return assemble(types.manifest, newBlob(types.config, mustJSON(map[string]any{
		"architecture": "wasm",
		"os":           "wasip1",
		"config":       map[string]any{},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{newBlob("", archive).Digest}},
	})), newBlob(types.layer, packed)), nil
}

func assemble(manifestType string, config blob, layers ...blob) image {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: manifestType, Config: descriptor(config.Descriptor)}
	for _, l := range layers {
		manifest.Layers = append(manifest.Layers, descriptor(l.Descriptor))
	}
	return image{blobs: append([]blob{config}, layers...), manifest: newBlob(manifestType, mustJSON(manifest))}
}

// mustJSON encodes what this file builds: strings, numbers and lists, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("oci: " + err.Error())
	}
	return b
}

func tarOf(name string, content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func gzipOf(content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
