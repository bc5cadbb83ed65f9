{{- /* stile.yaml: what the chart decides, over what .Values.config says. */}}
{{- define "stile.config" -}}
{{- $name := include "stile.name" . }}
{{- $scheme := ternary "http" "https" .Values.tls.insecure }}
{{- $tls := dict }}
{{- if not .Values.tls.insecure }}
{{- $tls = dict "certFile" "/etc/stile/tls/tls.crt" "keyFile" "/etc/stile/tls/tls.key" "clientCAFile" "/etc/stile/tls/ca.crt" }}
{{- end }}
{{- $server := dict "tls" $tls "insecure" .Values.tls.insecure }}
{{- $kubernetes := dict "namespaces" .Values.plugins.namespaces "revision" .Values.plugins.revision "selector" .Values.plugins.selector "namespace" .Release.Namespace }}
{{- $chart := dict
  "apiVersion" "stile.dev/v1alpha1"
  "kind" "Config"
  "resources" (dict "directory" "" "kubernetes" $kubernetes)
  "envoy" (dict "directory" "")
  "keys" (dict "file" "/etc/stile/keys/keys.yaml")
  "store" (dict "directory" "/var/lib/stile" "maxSize" .Values.store.maxSize "maxPerNamespace" .Values.store.maxPerNamespace)
  "xds" (mergeOverwrite (dict "address" ":18000") (deepCopy $server))
  "modules" (mergeOverwrite (dict "address" ":18001" "url" (.Values.modules.url | default (printf "%s://%s-modules.%s.svc:%v" $scheme $name .Release.Namespace .Values.modules.port))) (deepCopy $server))
  "admin" (dict "address" "127.0.0.1:18002")
  "health" (dict "address" ":18003")
}}
{{- if include "stile.webhooks" . }}
{{- $webhook := dict "address" ":18004" "service" (include "stile.webhook" .) }}
{{- if eq .Values.webhook.certificates "cert-manager" }}
{{- $_ := set $webhook "certFile" "/etc/stile/webhook/tls.crt" }}
{{- $_ := set $webhook "keyFile" "/etc/stile/webhook/tls.key" }}
{{- end }}
{{- $_ := set $chart "webhook" $webhook }}
{{- end }}
{{- if .Values.placement.enabled }}
{{- $p := pick .Values.placement "namespaceSelector" "preferred" "fallbackArchitecture" "maxWait" }}
{{- $p = mergeOverwrite (deepCopy $p) (dict "enabled" true) }}
{{- if .Values.placement.pullSecret.name }}{{- $_ := set $p "pullSecret" .Values.placement.pullSecret }}{{- end }}
{{- $_ := set $chart "placement" $p }}
{{- end }}
{{- $root := dict "rootNamespace" .Release.Namespace }}
{{- mergeOverwrite $root (deepCopy .Values.config) $chart | toYaml }}
{{- end }}
