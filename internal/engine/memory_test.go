package engine_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stileproject/stile/api/v1alpha1"
	"github.com/stileproject/stile/internal/engine"
	"github.com/stileproject/stile/internal/oci"
	"github.com/stileproject/stile/internal/plugin"
)

// memory survives the engine that wrote it. It keeps text, as a file would.
type memory struct {
	text  []byte
	times int
}

type remembered struct {
	Key plugin.Key
	engine.Remembered
}

func (m *memory) Remember(all map[plugin.Key]engine.Remembered) {
	var list []remembered
	for k, r := range all {
		list = append(list, remembered{k, r})
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	m.text = text
	m.times++
}

func (m *memory) Recall() map[plugin.Key]engine.Remembered {
	var list []remembered
	if m.text != nil {
		if err := json.Unmarshal(m.text, &list); err != nil {
			panic(err)
		}
	}
	all := map[plugin.Key]engine.Remembered{}
	for _, r := range list {
		all[r.Key] = r.Remembered
	}
	return all
}

// restart runs before in a house where team-a runs module 1, and then after in a new one
// with the same memory, the same documents and an empty gate.
func restart(t *testing.T, large bool, before, after func(*house)) {
	t.Helper()
	m := &memory{}
	with := func(c *engine.Config) { c.Memory = m }
	build(t, with, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, large)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		h.apply()
		h.connect("team-a")
		if before != nil {
			before(h)
		}
	})
	build(t, with, func(h *house) {
		h.registry.tags["a/p:v1"] = digestOf(1)
		h.contents.arrive(1, large)
		h.secret("team-a", good)
		h.plugin("team-a", "auth", image)
		after(h)
	})
}

func TestP9_AfterARestartWhatRunsStaysWhileNobodyAnswers(t *testing.T) {
	t.Parallel()
	restart(t, false, nil, func(h *house) {
		h.registry.set(func(r *registry) {
			r.err = &oci.Error{Op: "check", Kind: oci.Unavailable, Err: errors.New("connection refused")}
		})
		h.apply()
		h.connect("team-a")
		h.pass(time.Minute)
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.wantCondition("team-a", "auth", "Programmed=True ServingLastGood")
		h.registry.set(func(r *registry) { r.err = nil })
		h.pass(10 * time.Minute)
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP9_AfterARestartATagThatMovedMeanwhileMovesNobody(t *testing.T) {
	t.Parallel()
	restart(t, false, nil, func(h *house) {
		h.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
		h.contents.arrive(2, false)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP9_APluginWithPolicyAlwaysThatChangedMeanwhileIsAskedAgain(t *testing.T) {
	t.Parallel()
	always := func(s *v1alpha1.WasmPluginSpec) { s.ImagePullPolicy = v1alpha1.PullAlways }
	restart(t, false, nil, func(h *house) {
		h.registry.set(func(r *registry) { r.tags["a/p:v1"] = digestOf(2) })
		h.contents.arrive(2, false)
		h.plugin("team-a", "auth", image, always)
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "module 2")
	})
}

func TestP9_ARightThatHadEndedHasEndedAfterARestart(t *testing.T) {
	t.Parallel()
	restart(t, false, func(h *house) {
		h.registry.let(good, false)
		h.pass(2 * time.Hour)
		h.wantDelivered("team-a", "auth", "keep+standin")
	}, func(h *house) {
		h.registry.let(good, false)
		h.apply()
		h.connect("team-a")
		h.pass(time.Minute)
		h.wantDelivered("team-a", "auth", "keep+standin")
		if s := h.status("team-a", "auth"); s.Digest != digestOf(1) || !s.ServingLastGood {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestP9_TheLastGoodVersionComesBackThoughTheWantedOneCannotBeHad(t *testing.T) {
	t.Parallel()
	const v2 = "oci://" + host + "/a/p:v2"
	restart(t, false, func(h *house) {
		h.plugin("team-a", "auth", v2)
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
	}, func(h *house) {
		h.plugin("team-a", "auth", v2)
		h.apply()
		h.connect("team-a")
		h.pass(time.Minute)
		h.wantDelivered("team-a", "auth", "module 1")
	})
}

func TestP9_ModuleURLsAreTheSameAfterARestart(t *testing.T) {
	t.Parallel()
	var before string
	restart(t, true, func(h *house) {
		h.secret("team-a", "")
		h.apply()
		h.secret("team-a", good)
		h.apply() // the second epoch
		before = h.token("team-a", "auth")
	}, func(h *house) {
		h.apply()
		h.connect("team-a")
		if after := h.token("team-a", "auth"); after != before {
			t.Errorf("the URL changed with the restart: %s, then %s", before, after)
		}
	})
}

func TestMemoryIsWrittenOnlyWhenItChanges(t *testing.T) {
	t.Parallel()
	m := &memory{}
	running(t, func(c *engine.Config) { c.Memory = m }, func(h *house) {
		before := m.times
		h.pass(10 * time.Hour)
		if m.times != before {
			t.Errorf("written %d times in ten quiet hours", m.times-before)
		}
	})
}

func TestP9_AfterARestartAFileThatCannotBeReadTakesNothingAway(t *testing.T) {
	t.Parallel()
	restart(t, false, nil, func(h *house) {
		with := h.now
		h.now.Plugins, h.now.Secrets, h.now.Unreadable = nil, nil, []string{"team-a.yaml"}
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "keep+standin") // its chain has it still, whoever runs it goes on
		h.wantCondition("team-a", "auth", "Accepted=False Invalid")
		h.apply()
		h.wantDelivered("team-a", "auth", "keep+standin")
		h.now = with
		h.apply()
		h.wantDelivered("team-a", "auth", "module 1")
		h.wantCondition("team-a", "auth", "Accepted=True Accepted")
	})
}

func TestP9_WhatWasDeletedBeforeARestartStaysDeletedOnceEveryFileCanBeRead(t *testing.T) {
	t.Parallel()
	restart(t, false, nil, func(h *house) {
		h.now.Plugins, h.now.Unreadable = nil, []string{"other.yaml"}
		h.apply()
		h.connect("team-a")
		h.wantDelivered("team-a", "auth", "module 1")
		h.now.Unreadable = nil
		h.apply()
		h.wantDelivered("team-a", "auth", "nothing")
	})
}
