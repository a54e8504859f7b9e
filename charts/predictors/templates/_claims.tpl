{{/* Claims with files beside the checkpoint: adapters, a colocated checkpoint, the checker. A claim is one volume of a pod, however many of its folders are
mounted: a kubelet waits for ever for a second volume of a claim. */}}

{{/* Their names, each once, as JSON: (list model) */}}
{{- define "predictors.claims" -}}
{{- $model := first . -}}{{- $uris := list $model.checker.uri -}}{{- $found := list -}}
{{- range $model.loras }}{{ $uris = append $uris .uri }}{{ end -}}
{{- with $model.colocated }}{{ $uris = append $uris .uri }}{{ end -}}
{{- range $uris -}}
  {{- if and . (hasPrefix "pvc://" .) -}}
  {{- $found = append $found (trimPrefix "pvc://" . | splitList "/" | first) -}}
  {{- end -}}
{{- end -}}
{{ toJson (uniq $found) }}
{{- end }}

{{/* True where the checkpoint is on one of them. KServe mounts that claim, always, as a volume of its own: (list model) */}}
{{- define "predictors.sharesClaim" -}}
{{- $uri := (first .).storage.uri -}}
{{- if and (hasPrefix "pvc://" $uri) (has (trimPrefix "pvc://" $uri | splitList "/" | first) (include "predictors.claims" . | fromJsonArray)) }}true{{ end -}}
{{- end }}

{{- define "predictors.claimVolumes" -}}
{{- range $i, $claim := include "predictors.claims" . | fromJsonArray }}
- name: claim-{{ $i }}
  persistentVolumeClaim:
    claimName: {{ $claim }}
    readOnly: true
{{- end }}
{{- end }}

{{/* A folder of a claim: (list model uri path) */}}
{{- define "predictors.claimMount" -}}
{{- $parts := trimPrefix "pvc://" (index . 1) | splitList "/" -}}
{{- range $i, $claim := include "predictors.claims" . | fromJsonArray }}
{{- if eq $claim (first $parts) }}
- name: claim-{{ $i }}
{{- end }}
{{- end }}
  mountPath: {{ last . }}
  readOnly: true
  {{- with rest $parts | join "/" }}
  subPath: {{ . }}
  {{- end }}
{{- end }}

{{/* All folders of these claims: (list model) */}}
{{- define "predictors.claimMounts" -}}
{{- $model := first . -}}
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
