{{/* Signing of pictures (C2PA): settings, mount and volume of the runtime of FLUX, which alone draws: (list root format) */}}

{{/* Secret with certificate and key; empty for other formats and where pictures are not signed. */}}
{{- define "predictors.signingSecret" -}}
{{ ternary (first .).Values.c2pa.secretName "" (eq (last .) "flux") }}
{{- end }}

{{- define "predictors.signingEnv" -}}
{{- if include "predictors.signingSecret" . -}}
- name: PREDICTORS_FLUX_PROVENANCE
  value: c2pa
- name: PREDICTORS_FLUX_C2PA_CERT_FILE
  value: /etc/predictors/c2pa/tls.crt
- name: PREDICTORS_FLUX_C2PA_KEY_FILE
  value: /etc/predictors/c2pa/tls.key
{{- end }}
{{- end }}

{{- define "predictors.signingMounts" -}}
{{- if include "predictors.signingSecret" . -}}
- name: c2pa
  mountPath: /etc/predictors/c2pa
  readOnly: true
{{- end }}
{{- end }}

{{- define "predictors.signingVolumes" -}}
{{- with include "predictors.signingSecret" . -}}
- name: c2pa
  secret:
    secretName: {{ . | toYaml }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- end }}
{{- end }}

{{/* Settings that belong to `c2pa`, and the checker's values: (list root at model) */}}
{{- define "predictors.refuse.provenance" -}}
{{- $secret := (index . 0).Values.c2pa.secretName -}}{{- $at := index . 1 -}}
{{- $mark := dig "flux" "provenance" "" (index . 2).settings -}}
{{- if and $secret $mark (ne $mark "c2pa") -}}
{{- include "predictors.fail" (printf "%s.settings.flux.provenance is %s and c2pa.secretName is set, with which pictures are signed; leave one of them out" $at $mark) -}}
{{- end -}}
{{- if and (not $secret) (eq $mark "c2pa") -}}
{{- include "predictors.fail" (printf "%s.settings.flux.provenance c2pa needs c2pa.secretName: the Secret with certificate and key" $at) -}}
{{- end -}}
{{- $model := index . 2 -}}{{- $checker := $model.checker -}}
{{- if and $checker.uri (ne $model.format "flux") -}}
{{- include "predictors.fail" (printf "%s.checker judges drawn pictures, and %s draws none" $at $model.format) -}}
{{- end -}}
{{- if and $checker.uri (not $checker.labels) -}}
{{- include "predictors.fail" (printf "%s.checker.labels is needed: the labels of the checkpoint that stand for what must not be sent" $at) -}}
{{- end -}}
{{- if and $checker.labels (not $checker.uri) -}}
{{- include "predictors.fail" (printf "%s.checker.labels needs checker.uri: pvc://claim/path" $at) -}}
{{- end -}}
{{- end }}

{{/* Settings of the content check: (list model) */}}
{{- define "predictors.checkerEnv" -}}
{{- with (first .).checker -}}
{{- if .uri -}}
- name: PREDICTORS_FLUX_CHECKER
  value: /checker
- name: PREDICTORS_FLUX_CHECKER_LABELS
  value: {{ join "," .labels | quote }}
- name: PREDICTORS_FLUX_CHECKER_THRESHOLD
  value: {{ .threshold | quote }}
- name: PREDICTORS_FLUX_CHECKER_ACTION
  value: {{ .action | toYaml }}
{{- end }}
{{- end }}
{{- end }}
