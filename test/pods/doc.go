// Package pods creates gated pods on a real API server and lets a real scheduler place
// what decisions made of them.
package pods
