// Package alerts holds the chart's alerts and dashboard to the metrics that the code
// registers, and the alerts to their runbooks, with Prometheus' own parser and engine. It
// is a module of its own so that Prometheus weighs on no other.
package alerts
