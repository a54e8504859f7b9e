{{/* Names and labels. */}}

{{- define "predictors.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "predictors.fullname" -}}
{{- $name := include "predictors.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* Name of what belongs to one model: (list root name suffix?) */}}
{{- define "predictors.of" -}}
{{ include "predictors.short" (prepend (rest .) (include "predictors.fullname" (first .)) | join "-") }}
{{- end }}

{{/* A name of at most 63 characters. Of a longer one the end is a digest: names that begin alike, as those of one model do, must stay apart. */}}
{{- define "predictors.short" -}}
{{- ternary . (printf "%s-%s" (trunc 54 . | trimSuffix "-") (sha256sum . | trunc 8)) (le (len .) 63) -}}
{{- end }}

{{/* Labels that never change between versions: KServe copies an InferenceService's to the pod, where a changed label would restart the pod. */}}
{{- define "predictors.selectorLabels" -}}
app.kubernetes.io/name: {{ include "predictors.name" . | toYaml }}
app.kubernetes.io/instance: {{ .Release.Name | toYaml }}
{{- end }}

{{/* Labels of pods and of InferenceServices: (list root more?). `more` is merged over `commonLabels`. */}}
{{- define "predictors.podLabels" -}}
{{- $root := first . -}}
{{- $more := merge (dict) (index (append . dict) 1 | default dict) ($root.Values.commonLabels | default dict) -}}
{{ include "predictors.selectorLabels" $root }}
{{- if not (hasKey $more "app.kubernetes.io/part-of") }}
app.kubernetes.io/part-of: vision-predictors
{{- end }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of other objects: (list root more?) */}}
{{- define "predictors.labels" -}}
{{ include "predictors.podLabels" . }}
app.kubernetes.io/version: {{ (first .).Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" (first .).Chart.Name (first .).Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Where the release's objects are. */}}
{{- define "predictors.namespace" -}}
{{ default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* ServiceAccount of a model: (list root name model) */}}
{{- define "predictors.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- if $account.name -}}
{{ $account.name }}
{{- else if $account.create -}}
{{ include "predictors.of" (list (index . 0) (index . 1)) }}
{{- else -}}
default
{{- end -}}
{{- end }}

{{/* The claim that keeps compiled code: (list root name model) */}}
{{- define "predictors.cacheClaim" -}}
{{ default (include "predictors.of" (list (index . 0) (index . 1) "cache")) (index . 2).cache.claim }}
{{- end }}
