{{/* Claims with the files of a pod: adapters, a colocated checkpoint, the checker, the checkpoint. A claim is one volume of a pod, however many of its folders
are mounted: a kubelet waits for ever for a second volume of a claim. */}}

{{/* The claim of an address, or nothing: (list uri) */}}
{{- define "predictors.claimOf" -}}
{{- if hasPrefix "pvc://" (first .) }}{{ trimPrefix "pvc://" (first .) | splitList "/" | first }}{{ end -}}
{{- end }}

{{/* True where the chart mounts the checkpoint's claim in KServe's place: other files are on it too, or are downloaded, beside which KServe mounts a claim's root
only: (list model) */}}
{{- define "predictors.mountsCheckpoint" -}}
{{- with include "predictors.claimOf" (list (first .).storage.uri) -}}
{{- if or (has . (include "predictors.besideClaims" $ | fromJsonArray)) (include "predictors.downloadsLoras" $) }}true{{ end -}}
{{- end -}}
{{- end }}

{{/* Names of the claims with other files than the checkpoint, each once, as JSON: (list model) */}}
{{- define "predictors.besideClaims" -}}
{{- $model := first . -}}{{- $uris := list (default "" $model.checker.uri) -}}{{- $found := list -}}
{{- range $model.loras }}{{ $uris = append $uris .uri }}{{ end -}}
{{- with $model.colocated }}{{ $uris = append $uris .uri }}{{ end -}}
{{- range $uris -}}
  {{- with include "predictors.claimOf" (list .) }}{{ $found = append $found . }}{{ end -}}
{{- end -}}
{{ toJson (uniq $found) }}
{{- end }}

{{/* Names of all that the chart mounts, each once, as JSON: (list model) */}}
{{- define "predictors.claims" -}}
{{- $found := include "predictors.besideClaims" . | fromJsonArray -}}
{{- if include "predictors.mountsCheckpoint" . -}}
{{- $found = prepend $found (include "predictors.claimOf" (list (first .).storage.uri)) -}}
{{- end -}}
{{ toJson (uniq $found) }}
{{- end }}

{{/* Name of a claim's volume: (list model claim). KServe has this name for the checkpoint's, and adds neither volume nor mount to a container that mounts one. */}}
{{- define "predictors.claimVolume" -}}
{{- $claim := last . -}}
{{- if eq $claim (include "predictors.claimOf" (list (first .).storage.uri)) -}}
kserve-pvc-source
{{- else -}}
{{- range $i, $each := include "predictors.claims" . | fromJsonArray }}{{ if eq $each $claim }}claim-{{ $i }}{{ end }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "predictors.claimVolumes" -}}
{{- $model := first . -}}
{{- range include "predictors.claims" . | fromJsonArray }}
- name: {{ include "predictors.claimVolume" (list $model .) | toYaml }}
  persistentVolumeClaim:
    claimName: {{ . | toYaml }}
    readOnly: true
{{- end }}
{{- end }}

{{/* A folder of a claim: (list model uri path) */}}
{{- define "predictors.claimMount" -}}
{{- $parts := trimPrefix "pvc://" (index . 1) | splitList "/" }}
- name: {{ include "predictors.claimVolume" (list (first .) (first $parts)) | toYaml }}
  mountPath: {{ last . | toYaml }}
  readOnly: true
  {{- with rest $parts | join "/" }}
  subPath: {{ . | toYaml }}
  {{- end }}
{{- end }}

{{/* All folders of these claims: (list model) */}}
{{- define "predictors.claimMounts" -}}
{{- $model := first . -}}
{{- if include "predictors.mountsCheckpoint" . }}
{{- include "predictors.claimMount" (list $model $model.storage.uri "/mnt/models") }}
{{- end }}
{{- range $i, $lora := $model.loras }}
{{- if hasPrefix "pvc://" $lora.uri }}
{{- include "predictors.claimMount" (list $model $lora.uri (printf "/loras/%d" $i)) }}
{{- end }}
{{- end }}
{{- with $model.colocated }}
{{- if hasPrefix "pvc://" .uri }}
{{- include "predictors.claimMount" (list $model .uri "/colocated") }}
{{- end }}
{{- end }}
{{- with $model.checker.uri }}
{{- include "predictors.claimMount" (list $model . "/checker") }}
{{- end }}
{{- end }}
