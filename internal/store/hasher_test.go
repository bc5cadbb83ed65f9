package store

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestHasher_IsSHA256InWhateverPieces(t *testing.T) {
	t.Parallel()
	for _, piece := range []int{1 << 10, hashChunk - 1, hashChunk, hashChunk + 1, 5*hashChunk + 7} {
		h, plain := newHasher(), sha256.New()
		for i := range 9 {
			b := bytes.Repeat([]byte{byte(i)}, piece)
			h.write(b)
			plain.Write(b)
			if i%4 == 3 && !bytes.Equal(h.sum(), plain.Sum(nil)) { // and go on
				t.Errorf("pieces of %d: another sum after %d", piece, i)
			}
		}
		if !bytes.Equal(h.sum(), plain.Sum(nil)) {
			t.Errorf("pieces of %d: another sum", piece)
		}
		h.stop()
	}
	if empty := sha256.Sum256(nil); !bytes.Equal(newHasher().sum(), empty[:]) {
		t.Error("nothing has another sum")
	}
}
