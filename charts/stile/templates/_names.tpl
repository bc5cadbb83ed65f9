{{- define "stile.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else if contains "stile" .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}{{ printf "%s-stile" .Release.Name | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "stile.account" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}{{ else if .Values.serviceAccount.create }}{{ include "stile.name" . }}{{ else }}default{{ end }}
{{- end }}

{{- define "stile.selector" -}}
app.kubernetes.io/name: stile
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stile.labels" -}}
{{ include "stile.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "stile.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "stile.webhook" -}}{{ include "stile.name" . }}-webhook{{- end }}
{{- define "stile.keys" -}}{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "stile.name" .)) }}{{- end }}
{{- define "stile.tls" -}}{{ .Values.tls.secretName | default (printf "%s-tls" (include "stile.name" .)) }}{{- end }}

{{- /* Whether anything asks the webhook server. */}}
{{- define "stile.webhooks" -}}
{{- if or .Values.webhook.enabled (and .Values.placement.enabled (eq .Values.placement.via "webhook")) }}true{{ end }}
{{- end }}

{{- /* Whether a cluster can be asked: "helm template" and client-side dry runs cannot, and would take every answer for "there is none". */}}
{{- define "stile.online" -}}
{{- if lookup "v1" "Namespace" "" "kube-system" }}true{{ end }}
{{- end }}
