// Package placement holds decisions about pods against the API server's own validation
// of updates, compiled from its sources, which weigh on no other module.
package placement
