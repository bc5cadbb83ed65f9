// Package architecture holds, in its tests, the rules of the house that no compiler checks: which room may import
// which, where a secret may be revealed, what a pure room may not touch. Each rule says why it is there; who has a
// better reason changes the rule, its reason and docs/RATIONALE.md in one commit.
package architecture
